"""The clients over gRPC and REST, answered by the SavedModel, against the model in this process."""

import base64
import http.server
import json
import threading
from concurrent import futures

import pytest
import tensorflow as tf

from kmaskrcnn.export.client import GrpcClient, ImageError, RestClient, ServingError
from tests.export.conftest import LABELS, assert_same
from tests.export.images import encode, picture, with_exif
from tests.processes import run_python


@pytest.fixture(scope="module")
def grpc_target(loaded):
    """The real PredictionService on loopback, answered by the SavedModel."""
    grpc = pytest.importorskip("grpc")
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            if request.model_spec.name != "fruits":
                context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {request.model_spec.name}")
            inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            outputs = loaded.signatures[request.model_spec.signature_name](**inputs)
            for name in request.output_filter or outputs:
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name].numpy()))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_send_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0)


class RestHandler(http.server.BaseHTTPRequestHandler):
    """TensorFlow Serving's REST predict API, as its documentation has it, for a model with one string input."""

    function = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/models/fruits:predict":
            self.answer(404, {"error": f"Malformed request: POST {self.path}"})
            return
        rows = body["instances"] if "instances" in body else body["inputs"]["image_bytes"]
        images = [base64.b64decode(row["b64"]) for row in rows]
        outputs = RestHandler.function(image_bytes=tf.constant(images, tf.string))
        outputs = {name: value.numpy() for name, value in outputs.items()}
        outputs = {n: [e.decode() for e in v] if v.dtype == object else v.tolist() for n, v in outputs.items()}
        if "inputs" in body:
            self.answer(200, {"outputs": outputs})
        else:
            self.answer(200, {"predictions": [{n: v[i] for n, v in outputs.items()} for i in range(len(images))]})

    def answer(self, status, tree):
        data = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def rest_url(loaded):
    RestHandler.function = loaded.signatures["serving_default"]
    server = http.server.ThreadingHTTPServer(("localhost", 0), RestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(params=["grpc", "row", "column"])
def client(request):
    if request.param == "grpc":
        client = GrpcClient(request.getfixturevalue("grpc_target"), "fruits", LABELS)
        yield client
        client.close()
    else:
        yield RestClient(request.getfixturevalue("rest_url"), "fruits", LABELS, layout=request.param)


def test_clients_give_the_models_predictions(client, exported, tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    paths[0].write_bytes(encode(picture()))
    paths[1].write_bytes(with_exif(picture(90, 60), 6, "PNG"))
    for path in paths:
        assert_same(client.predict(path), exported.predictor.predict(str(path)))
    turned = client.predict(paths[1])
    assert (turned.height, turned.width) == (60, 90)
    assert turned.to_coco(5)[0]["segmentation"]["size"] == [60, 90]
    assert turned.mask(0).shape == (60, 90)
    results = client.predict_batch([paths[0], b"junk"])
    assert len(results[0]) > 0 and isinstance(results[1], ImageError)
    with pytest.raises(ImageError, match="not a JPEG"):
        client.predict(b"junk")
    assert client.predict_batch([]) == []


def test_clients_say_what_the_server_said(grpc_target, rest_url):
    with pytest.raises(ServingError, match=r"NOT_FOUND.*pears"):
        GrpcClient(grpc_target, "pears", LABELS).predict(encode(picture()))
    with pytest.raises(ServingError, match="404"):
        RestClient(rest_url, "pears", LABELS).predict(encode(picture()))
    with pytest.raises(ServingError, match="localhost:1"):
        RestClient("http://localhost:1", "fruits", LABELS).predict(encode(picture()))


def test_warmup_file_is_what_serving_replays(exported, grpc_target):
    grpc = pytest.importorskip("grpc")
    from tensorflow_serving.apis import prediction_log_pb2, prediction_service_pb2_grpc

    path = exported.version / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(r) for r in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(grpc_target))
    assert len(logs) == len(exported.warmup)
    for log, image in zip(logs, exported.warmup, strict=True):
        assert tf.make_ndarray(log.predict_log.request.inputs["image_bytes"]).tolist() == [image]
        response = stub.Predict(log.predict_log.request)
        assert tf.make_ndarray(response.outputs["num_detections"])[0] > 0


NO_TENSORFLOW = """
import sys
import kmaskrcnn.export.client, kmaskrcnn.export.serving_protos
heavy = {m.split(".")[0] for m in sys.modules} & {"tensorflow", "keras", "torch", "jax"}
assert not heavy, heavy
"""


def test_clients_need_neither_tensorflow_nor_keras():
    result = run_python("-c", NO_TENSORFLOW)
    assert result.returncode == 0, result.stderr
