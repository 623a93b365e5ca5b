"""benchmarks/speed: how its sides are compared, and those that other runtimes are, where they are installed."""

import numpy as np
import pytest

from benchmarks.speed import run, workloads


def found(shift=0.0, score=0.9, masks=0.5):
    boxes = np.array([[0, 0, 20, 30], [10, 10, 50, 40]], np.float32) + np.float32(shift)
    return workloads.detections(boxes, [score, 0.8], [1, 2], np.full((2, 28, 28), masks))


def test_every_side_has_works_and_ours_does_them(tmp_path):
    names = run.works(tmp_path)
    for _, patterns in run.SIDES.values():
        assert any(run.matches(name, patterns) for name in names)
    assert all(run.matches(name, run.SIDES["ours"][1]) for name in names)


@pytest.mark.parametrize("other", [{"shift": 0.1}, {"score": 0.902}, {"masks": 0.502}])
def test_a_side_that_finds_other_objects_stops_the_run(other):
    told = {"ours": {}, "openvino": {}}
    run.check_same_detections("work", {"ours": found(), "openvino": found(shift=0.001, score=0.9005)}, told)
    with pytest.raises(SystemExit, match="not in openvino"):
        run.check_same_detections("work", {"ours": found(), "openvino": found(**other)}, told)


def test_int8_tells_the_share_that_it_finds():
    told = {"ours": {}, "openvino-int8": {}}
    other = found(shift=1.0, score=0.7)
    other["classes"] = [1, 3]
    run.check_same_detections("work", {"ours": found(), "openvino-int8": other}, told)
    assert told["openvino-int8"] == {"found": 0.5}


def test_the_table_names_the_best_rival():
    sides = {"ours": 1.0, "ours-constants": 0.75, "torchvision": 3.0, "openvino": 1.5, "openvino-int8": 0.6}
    result = {side: {"total": [seconds]} for side, seconds in sides.items()}
    result["told"] = {side: {} for side in sides} | {"openvino-int8": {"found": 0.9}}
    row = run.table({"inference": result}).splitlines()[2].split(" | ")
    assert row[5] == "600 ms (600 to 600), finds 90%"
    assert row[-3:] == ["3.00", "1.50 (openvino)", "2.00 (openvino) |"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For the weights of a small model and its graphs, which are made once."""
    return tmp_path_factory.mktemp("weights")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8"])
def test_a_graph_finds_what_torchvision_finds(runtime, folder, monkeypatch):
    for package in ("torch", "onnx", "onnxruntime", "openvino", "nncf"):
        pytest.importorskip(package)
    from benchmarks.parity.torch_models import build
    from benchmarks.speed import graph_side, torch_side

    monkeypatch.setattr(torch_side, "build", lambda *_: build("tiny"))
    monkeypatch.setattr(graph_side, "WEIGHTS", folder / "model.pth")
    torch_side.load_weights(folder / "model.pth")
    work = {"height": 96, "width": 128, "batch": 1, "dtype": "float32", "paste": False}
    told = {"ours": torch_side.inference(**work)[1], runtime: graph_side.inference(runtime, **work)[1]}
    detections = {side: own.pop("found") for side, own in told.items()}
    run.check_same_work("work", told, "float32")
    run.check_same_detections("work", detections, told)
    assert told[runtime].get("found", 1) > 0.5
