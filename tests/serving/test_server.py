"""The server as a process, with a model that is none: what is let in, batched, refused, and survives."""

import json
import os
import signal
import socket
from concurrent import futures

import pytest

pytest.importorskip("litserve")
pytest.importorskip("prometheus_fastapi_instrumentator")
grpc = pytest.importorskip("grpc")

from kmaskrcnn.export import serving_protos  # noqa: E402
from tests.serving.running import FakeServer  # noqa: E402

QUEUE, MAX_BATCH, MAX_BYTES, MAX_IMAGES = 6, 4, 100_000, 5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = FakeServer(
        tmp_path_factory.mktemp("served"),
        queue=QUEUE,
        max_batch_size=MAX_BATCH,
        batch_wait_ms=20,
        max_request_bytes=MAX_BYTES,
        max_images=MAX_IMAGES,
        timeout=60.0,
    )
    yield server
    server.stop()


def states(server):
    """The state of each version that the server tells of."""
    told = json.loads(server.get("/v1/models/mine")[1])["model_version_status"]
    return {one["version"]: one["state"] for one in told}


def test_rest_as_tensorflow_serving_has_it(server):
    status, answer = server.predict(b"abc", b"defgh")
    assert status == 200
    assert [row["length"] for row in answer["predictions"]] == [3.0, 5.0]
    assert answer["predictions"][0]["image_errors"] == ""
    body = json.dumps({"inputs": {"image_bytes": [{"b64": "YWJj"}]}, "signature_name": "serving_default"}).encode()
    assert server.predict(body=body)[1]["outputs"]["length"] == [3.0]
    status, state, _ = server.get("/v1/models/mine")
    assert status == 200 and json.loads(state)["model_version_status"][0]["state"] == "AVAILABLE"
    assert server.get("/v1/models/other")[0] == 404
    status, metrics, _ = server.get("/metrics")
    assert status == 200 and b"http_requests_total" in metrics
    status, page, headers = server.get("/")
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert b'const MODEL = "mine"' in page and b"apple" in page and page.count(b"</script>") == 1


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "JSON"),
        (b"{", 400, "JSON"),
        (b"[" * 50_000, 400, "more parts than 5 images need"),
        (b"[]", 400, "object"),
        (b"{}", 400, "'instances' or 'inputs'"),
        (b'{"instances": [], "inputs": []}', 400, "either"),
        (b'{"instances": 3}', 400, "list"),
        (b'{"instances": ["abc"]}', 400, "b64"),
        (b'{"instances": [{"b64": 3}]}', 400, "b64"),
        (b'{"instances": [{"b64": "%%%"}]}', 400, "base64"),
        (b'{"instances": [{"b64": "YWJj"}], "signature_name": "serving_tensor"}', 400, "signature_name"),
        (json.dumps({"instances": [{"b64": "YWJj"}] * 6}).encode(), 400, "5 images"),
        (json.dumps({"instances": [{"b64": "A" * 140_000}]}).encode(), 413, "100000 bytes"),
        (b" " * 1_000_000, 413, "100000 bytes"),
    ],
)
def test_requests_that_are_refused(server, body, status, words):
    found, answer = server.predict(body=body)
    assert found == status and words in answer["error"]


def grpc_predict(server, *images, model="mine", names=(), timeout=60):
    """Outputs of a request over gRPC; raises grpc.RpcError."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call = channel.unary_unary(
            serving_protos.PREDICT_METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=serving_protos.PredictResponse.FromString,
        )
        response = call(serving_protos.predict_request(list(images), model, names), timeout=timeout)
    assert response.model_spec.name == "mine"
    return serving_protos.outputs_of(response)


def test_grpc_answers_as_rest_does(server):
    outputs = grpc_predict(server, b"abc", b"defgh")
    assert outputs["length"].tolist() == [3.0, 5.0] and outputs["image_errors"].tolist() == [b"", b""]
    assert set(grpc_predict(server, b"abc", names=["length"])) == {"length"}


@pytest.mark.parametrize(
    ("images", "options", "code", "words"),
    [
        ([b"refuse"], {}, "INVALID_ARGUMENT", "the model refuses"),
        ([b"fail"], {}, "INTERNAL", "the model failed: KeyError"),
        ([b"abc"] * 6, {}, "INVALID_ARGUMENT", "5 images"),
        ([b"abc"], {"model": "other"}, "NOT_FOUND", "'mine'"),
        ([b"abc"], {"names": ["depth"]}, "INVALID_ARGUMENT", "'depth'"),
        ([b"a" * 100_001], {}, "INVALID_ARGUMENT", "100000 bytes"),
    ],
)
def test_grpc_requests_that_are_refused(server, images, options, code, words):
    with pytest.raises(grpc.RpcError) as caught:
        grpc_predict(server, *images, **options)
    assert caught.value.code().name == code and words in caught.value.details()


def test_grpc_refuses_what_is_no_request_and_keeps_deadlines(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for method, code in ((serving_protos.PREDICT_METHOD, "INVALID_ARGUMENT"), ("/a/b", "UNIMPLEMENTED")):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"\xff\xff", timeout=60)
            assert caught.value.code().name == code
    gate = server.model / "1" / "gate"
    gate.unlink(missing_ok=True)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            grpc_predict(server, b"wait", timeout=1)
    finally:
        gate.touch()
    assert caught.value.code().name == "DEADLINE_EXCEEDED"
    server.until(lambda: server.predict(b"abc")[0] == 200)


def test_grpc_takes_no_more_than_may_wait(server):
    def outcome(_):
        try:
            return len(grpc_predict(server, b"wait")["length"])
        except grpc.RpcError as error:
            return error.code().name

    gate = server.model / "1" / "gate"
    gate.unlink(missing_ok=True)
    with futures.ThreadPoolExecutor(30) as pool:
        pending = [pool.submit(outcome, number) for number in range(30)]
        try:
            # All but those that are let in are refused while nothing is answered.
            server.until(lambda: sum(future.done() for future in pending) >= 30 - QUEUE)
        finally:
            gate.touch()
        outcomes = [future.result() for future in pending]
    assert outcomes.count(1) == QUEUE and outcomes.count("RESOURCE_EXHAUSTED") == 30 - QUEUE
    server.until(lambda: server.predict(b"abc")[0] == 200)


def test_one_of_a_batch_does_not_fail_the_others(server):
    with futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(server.predict, [b"abc", b"refuse", b"fail", b"abcd"]))
    assert [status for status, _ in results] == [200, 400, 422, 200]
    assert results[1][1]["error"] == "the model refuses"
    assert results[2][1]["error"] == "the model failed: KeyError"  # and nothing of what it was about
    assert results[3][1]["predictions"][0]["length"] == 4.0


def test_requests_are_batched_and_no_more_are_taken_than_may_wait(server):
    with futures.ThreadPoolExecutor(30) as pool:
        gate, waiting = server.under_way(pool, b"wait", QUEUE)
        try:
            # A probe that is let in waits like the others, and fills the queue too.
            server.until(lambda: server.predict(b"abc", timeout=1)[0] == 429)
            refused = [server.predict(b"abc") for _ in range(10)]
            assert server.get("/health")[0] == 200
        finally:
            gate.touch()
        results = [future.result() for future in waiting]
    assert all(status == 429 and "6 requests" in answer["error"] for status, answer in refused)
    assert {status for status, _ in results} <= {200, 429}
    answered = [answer["predictions"][0]["batch"] for status, answer in results if status == 200]
    assert 1 < max(answered) <= MAX_BATCH
    assert server.predict(b"abc")[0] == 200


def test_clients_that_go_or_send_nothing_take_no_place_for_ever(server):
    head = b"POST /v1/models/mine:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"
    for _ in range(3 * QUEUE):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head)
    server.until(lambda: server.predict(b"abc")[0] == 200)


def test_a_worker_that_is_killed_is_started_again(server):
    begun = server.model / "1" / "begun"
    begun.unlink(missing_ok=True)
    with futures.ThreadPoolExecutor(2) as pool:
        gate, (waiting,) = server.under_way(pool, b"wait", 1)
        (worker,) = server.workers()
        server.until(begun.exists)
        os.kill(worker, signal.SIGKILL)
        gate.touch()
        status, answer = waiting.result()
    assert status == 503, answer
    server.until(lambda: server.predict(b"abc")[0] == 200)
    assert server.workers() != [worker]


def test_a_newer_version_takes_over(server):
    assert server.predict(b"abc")[1]["predictions"][0]["version"] == 1.0
    server.add_version(2)
    server.until(lambda: server.predict(b"abc")[1]["predictions"][0]["version"] == 2.0)
    assert states(server) == {"2": "AVAILABLE"}


def test_a_version_that_cannot_be_loaded_is_not_called_available(server):
    """A rollout goes by the state, and the version before is what answers."""
    before = next(iter(states(server)))
    server.add_version(13)
    server.until(lambda: "cannot be loaded" in server.log())
    assert states(server) == {before: "AVAILABLE", "13": "LOADING"}
    assert server.predict(b"abc")[1]["predictions"][0]["version"] == float(before)
