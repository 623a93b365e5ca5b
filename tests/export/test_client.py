"""The clients against servers that answer nonsense, slowly, or not at all."""

import asyncio
import base64
import contextlib
import io
import json
import socket
import threading
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.export import retries
from kmaskrcnn.export.answers import OUTPUTS
from kmaskrcnn.export.client import (
    AsyncClient,
    GrpcClient,
    ImageError,
    RestClient,
    ServerBusyError,
    ServingError,
    ServingTimeoutError,
    load_image,
)
from kmaskrcnn.results.labels import Labels

LABELS = Labels(("apple", "pear"), (1, 2))
ROW = {
    "num_detections": 1.0,
    "detection_boxes": [[0.1, 0.2, 0.5, 0.6], [0.0] * 4],
    "detection_scores": [0.75, 0.0],
    "detection_classes": [2.0, 0.0],
    "detection_masks": [[[1.0, 0.0], [0.0, 1.0]]] * 2,
    "image_sizes": [100.0, 200.0],
    "image_errors": "",
}


def answer(tree=None, status="200 OK", extra="", body=None):
    """The bytes of an HTTP answer."""
    data = json.dumps({"predictions": [ROW]} if tree is None else tree).encode() if body is None else body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode() + data


class Server:
    """Answers the n-th request with the n-th of some scripts, the last one again and again.

    A script is bytes, or a list of pieces after which the connection ends; a number among them is a pause in seconds.
    """

    def __init__(self, *scripts):
        self.scripts, self.requests, self.connections = list(scripts), 0, 0
        self._over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as file:
            while not self._over.is_set():
                length, line = 0, file.readline()
                if not line:
                    return
                while line not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                    line = file.readline()
                file.read(length)
                script = self.scripts[min(self.requests, len(self.scripts) - 1)]
                self.requests += 1
                for piece in [script] if isinstance(script, bytes) else script:
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                    elif self._over.wait(piece):
                        return
                if not isinstance(script, bytes) or b"Content-Length" not in script:
                    return


def client_of(server, **options):
    return RestClient(server.url, "fruits", LABELS, **{"timeout": 30.0, "retries": 0} | options)


def changed(**values):
    return {"predictions": [ROW | values]}


def without(name):
    return {"predictions": [{key: value for key, value in ROW.items() if key != name}]}


def test_an_answer_is_read_over_one_connection():
    with Server(answer()) as server:
        client = client_of(server)
        for _ in range(3):
            prediction = client.predict(b"image")
        assert (server.requests, server.connections) == (3, 1)
        client.close()
    np.testing.assert_allclose(prediction.boxes, [[10, 40, 50, 120]], rtol=1e-6)
    assert prediction.names == ["pear"]


HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999999\r\n\r\n{"
NONSENSE = {
    "no HTTP": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "no JSON": answer(body=b"<html>"),
    "empty": answer(body=b""),
    "not UTF-8": answer(body=b"\xff\xfe\xfa"),
    "a number": answer(1),
    "a list": answer([]),
    "null": answer(body=b"null"),
    "no predictions": answer({}),
    "null predictions": answer({"predictions": None}),
    "empty predictions": answer({"predictions": []}),
    "too many predictions": answer({"predictions": [ROW, ROW]}),
    "a text for a row": answer({"predictions": ["abc"]}),
    "deep": answer(body=b"[" * 100_000),
    "a long number": answer(body=b'{"predictions": ' + b"9" * 10_000 + b"}"),
    "a long length": HUGE,
    "negative length": [b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}"],
    "a long header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "endless chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffff\r\nabc\r\n",
    "bad status": b"HTTP/1.1 abc OK\r\n\r\n",
    "redirect": answer(status="302 Found", extra="Location: http://127.0.0.1:1/\r\n"),
    "no content": answer(status="204 No Content"),
    "more found than rows": answer(changed(num_detections=3)),
    "half an object": answer(changed(num_detections=0.5)),
    "negative": answer(changed(num_detections=-1)),
    "infinite": answer(body=json.dumps(changed(num_detections=float("inf"))).encode()),
    "not a number": answer(changed(detection_scores=[float("nan"), 0])),
    "1e400": answer(body=json.dumps({"predictions": [ROW]}).replace("0.75", "1e400").encode()),
    "a text for a score": answer(changed(detection_scores=["high", 0])),
    "ragged boxes": answer(changed(detection_boxes=[[0.1], [0.0] * 4])),
    "boxes of three": answer(changed(detection_boxes=[[0.1] * 3] * 2)),
    "fewer boxes": answer(changed(detection_boxes=[[0.1] * 4])),
    "a class too many": answer(changed(detection_classes=[3, 0])),
    "class 0": answer(changed(detection_classes=[0, 0])),
    "no masks": answer(without("detection_masks")),
    "oblong masks": answer(changed(detection_masks=[[[1.0, 0.0]]] * 2)),
    "mask scores of other rows": answer(changed(detection_mask_scores=[0.5])),
    "null masks": answer(changed(detection_masks=None)),
    "no sizes": answer(without("image_sizes")),
    "impossible size": answer(changed(image_sizes=[1e9, 1e9])),
    "size 0": answer(changed(image_sizes=[0, 10])),
    "size too large together": answer(changed(image_sizes=[1e6, 1e6])),
    "packed masks that are none": answer(
        {"predictions": [without("detection_masks")["predictions"][0] | {"detection_masks_png_bytes": {"b64": "AAAA"}}]}
    ),
}


@pytest.mark.parametrize("script", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_serving_error(script):
    with Server(script) as server, pytest.raises(ServingError):
        client_of(server, timeout=20.0).predict(b"image")


@pytest.mark.parametrize("layout", ["row", "column"])
def test_every_change_of_an_answer_ends_well_or_as_a_serving_error(layout):
    rng = np.random.default_rng(0)
    tree = {"predictions": [ROW]} if layout == "row" else {"outputs": {name: [value] for name, value in ROW.items()}}
    whole = json.dumps(tree).encode()
    bodies = []
    for _ in range(300):
        data = bytearray(whole)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            data[position] = rng.choice(np.frombuffer(b'0123456789eE-+.,:[]{}"nul \\', np.uint8))
        bodies.append(answer(body=bytes(data)))
    outcomes = set()
    with Server(*bodies) as server:
        client = client_of(server, layout=layout)
        for _ in bodies:
            try:
                client.predict(b"image").mask(0)
                outcomes.add("read")
            except IndexError:  # no object found
                outcomes.add("read")
            except ServingError:
                outcomes.add("refused")
            except ImageError:
                outcomes.add("left out")
    assert {"read", "refused"} <= outcomes


DRIPS = {
    "silence": [60],
    "status line": [piece for byte in answer() for piece in (bytes([byte]), 0.05)],
    "body": [answer()[:-500], *[piece for _ in range(600) for piece in (b" ", 0.05)]],
    "headers": [b"HTTP/1.1 200 OK\r\n", *[piece for _ in range(600) for piece in (b"X: y\r\n", 0.05)]],
    "without a length": [b"HTTP/1.1 200 OK\r\n\r\n", *[piece for _ in range(600) for piece in (b" ", 0.05)]],
}


@pytest.mark.parametrize("script", DRIPS.values(), ids=DRIPS)
def test_a_server_that_drips_does_not_outlast_the_timeout(script):
    with Server(script) as server, pytest.raises(ServingTimeoutError, match=r"no answer within 0\.3 s"):
        client_of(server, timeout=0.3, retries=3).predict(b"image")


def test_a_client_that_does_not_get_rid_of_its_request_gives_up_in_time():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with pytest.raises(ServingTimeoutError):
            RestClient(url, "fruits", LABELS, timeout=0.3).predict(bytes(30 << 20))


def test_long_answers_are_refused():
    with Server(answer(body=b" " * 2000)) as server, pytest.raises(ServingError, match="more than 1000"):
        client_of(server, max_answer_bytes=1000).predict(b"image")
    endless = [b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 10_000] * 10_000]
    with Server(endless) as server, pytest.raises(ServingError, match="more than 1000000 bytes"):
        client_of(server, max_answer_bytes=1_000_000).predict(b"image")


@pytest.mark.parametrize(
    "refusal",
    [
        answer(status="429 Too Many Requests", extra="Retry-After: 0\r\n"),
        answer(status="503 Service Unavailable"),
        [b""],
        answer()[:-5],
    ],
    ids=["429", "503", "closed", "cut short"],
)
def test_what_may_succeed_later_is_sent_again(refusal, monkeypatch):
    monkeypatch.setattr(retries, "FIRST_WAIT", 1e-3)
    if isinstance(refusal, bytes) and refusal == answer()[:-5]:
        refusal = [refusal]
    with Server(refusal, refusal, answer()) as server:
        assert len(client_of(server, retries=2).predict(b"image")) == 1
        assert server.requests == 3
    with Server(refusal) as server:
        with pytest.raises(ServerBusyError):
            client_of(server, retries=1).predict(b"image")
        assert server.requests == 2


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "413 Too Large", "500 Internal Server Error"])
def test_what_cannot_succeed_is_sent_once(status):
    with Server(answer({"error": "why"}, status)) as server:
        with pytest.raises(ServingError, match=rf"{status[:3]} .*why") as error:
            client_of(server, retries=3).predict(b"image")
        assert server.requests == 1 and not isinstance(error.value, ServerBusyError)


def test_a_wait_beyond_the_deadline_is_not_begun():
    with Server(answer(status="429 Too Many Requests", extra="Retry-After: 3600\r\n")) as server:
        with pytest.raises(ServerBusyError):
            client_of(server, retries=3).predict(b"image")
        assert server.requests == 1


def test_pictures_are_split_into_requests_that_the_server_takes():
    sent = []

    class Counting(RestClient):
        def _send(self, images, deadline):
            sent.append([len(image) for image in images])
            return {name: [value] * len(images) for name, value in ROW.items()}

    client = Counting("http://localhost:1", "fruits", LABELS, max_images=3, max_bytes=100)
    assert len(client.predict_batch([b"x" * n for n in (10, 10, 10, 10, 95, 200, 1)])) == 7
    assert sent == [[10, 10, 10], [10], [95], [200], [1]]
    assert client.predict_batch([]) == []


def test_async_calls_run_beside_each_other():
    async def run(url):
        client = AsyncClient(RestClient(url, "fruits", LABELS, timeout=30.0), connections=4)
        return await asyncio.gather(*[client.predict(b"image") for _ in range(8)], client.predict_batch([b"image"]))

    with Server(answer()) as server:
        results = asyncio.run(run(server.url))
        assert server.requests == 9 and server.connections <= 8
    assert [len(result) for result in results] == [1] * 9


def test_mask_scores_are_read_where_the_model_has_them():
    with Server(answer(), answer(changed(detection_mask_scores=[0.5, 0.0]))) as server:
        client = client_of(server)
        assert client.predict(b"image").mask_scores is None
        np.testing.assert_allclose(client.predict(b"image").mask_scores, [0.5])


def test_grpc_asks_for_mask_scores_on_request():
    pytest.importorskip("grpc")
    for options, names in (({}, OUTPUTS), ({"mask_scores": True}, (*OUTPUTS, "detection_mask_scores"))):
        client = GrpcClient("localhost:1", "fruits", LABELS, **options)
        assert client._names == names
        client.close()


def test_compact_masks_are_unpacked():
    buffer = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [128, 51]], np.uint8)).save(buffer, "PNG")
    row = {name: value for name, value in ROW.items() if name != "detection_masks"}
    row["detection_masks_png_bytes"] = {"b64": base64.b64encode(buffer.getvalue()).decode()}
    with Server(answer({"predictions": [row]})) as server:
        masks = client_of(server).predict(b"image").mask_probabilities
    np.testing.assert_allclose(masks, [[[1, 0], [128 / 255, 0.2]]], atol=1e-6)


@pytest.mark.parametrize("url", ["localhost:8501", "", "ftp://localhost", "http://"])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="not the address of a server"):
        RestClient(url, "fruits", LABELS)


def test_images_to_draw_on_are_upright(tmp_path):
    """As in the photographs of a telephone held upright: wide pixels, and EXIF that says to turn them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (60, 40, 3)
    assert load_image((tmp_path / "a.jpg").read_bytes()).shape == (60, 40, 3)
    with pytest.raises(ImageError, match="not an image"):
        load_image(b"no image")


def test_a_grpc_answer_that_is_too_long_is_asked_for_once():
    """gRPC calls it RESOURCE_EXHAUSTED, as a server that is busy, but it would be as long each time."""
    grpc = pytest.importorskip("grpc")
    calls = []

    class Long(grpc.GenericRpcHandler):
        def service(self, details):
            def predict(request, context):
                calls.append(details.method)
                return bytes(5000)

            return grpc.unary_unary_rpc_method_handler(predict)

    service = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Long()])
    port = service.add_insecure_port("127.0.0.1:0")
    service.start()
    try:
        client = GrpcClient(f"127.0.0.1:{port}", "fruits", LABELS, timeout=30.0, max_answer_bytes=1000)
        with pytest.raises(ServingError, match="larger than max") as caught:
            client.predict(b"image")
        assert not isinstance(caught.value, ServerBusyError) and len(calls) == 1
        client.close()
    finally:
        service.stop(None)


def test_a_name_with_a_space_or_another_alphabet_reaches_the_server():
    body = json.dumps({"error": "no such model"}).encode()
    with Server(answer(body=body, status="404 Not Found")) as server:
        client = RestClient(server.url, "fr\u00fcchte mit K\u00f6rben/1", LABELS, retries=0)
        assert client.url.endswith("/v1/models/fr%C3%BCchte%20mit%20K%C3%B6rben%2F1:predict")
        with pytest.raises(ServingError, match="no such model"):
            client.predict(b"image")
