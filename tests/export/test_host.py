"""The host's steps between the GPU's graphs, in each language, against vectors that the model made."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kmaskrcnn.export import host

ROOT = Path(__file__).parents[2]
PATH = ROOT / "tests" / "golden" / "host_vectors.json"


@pytest.fixture(scope="module")
def vectors():
    def unpack(value):
        if isinstance(value, dict) and value.keys() == {"shape", "data"}:
            return np.frombuffer(base64.b64decode(value["data"]), "<f4").reshape(value["shape"])
        return {name: unpack(v) for name, v in value.items()} if isinstance(value, dict) else value

    return unpack(json.loads(PATH.read_text()))


def test_each_step_gives_what_the_model_gives(vectors):
    settings, shape, pyramid = (vectors[name] for name in ("settings", "image_shape", "pyramid"))
    rois = host.proposals(pyramid, shape, settings)
    np.testing.assert_allclose(rois, vectors["proposals"], atol=1e-4)
    pooled = host.roi_align(pyramid, rois, len(rois), settings["box_pool_size"], settings)
    np.testing.assert_allclose(pooled, vectors["pooled"], atol=1e-4)
    heads, expected = vectors["heads"], vectors["detections"]
    boxes, scores, classes = host.detections(heads["scores"], heads["deltas"], rois, shape, settings)
    np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-4)
    np.testing.assert_allclose(scores, expected["scores"], atol=1e-6)
    np.testing.assert_array_equal(classes, expected["classes"])
    pooled = host.roi_align(pyramid, boxes, settings["max_detections"], settings["mask_pool_size"], settings)
    np.testing.assert_allclose(pooled, vectors["pooled_masks"], atol=1e-4)


def test_the_whole_model_from_its_graphs(vectors):
    graphs = {"pyramid": vectors["pyramid"], "boxes": vectors["heads"], "masks": {"masks": vectors["masks"]}}
    found = host.detect(lambda name, _: graphs[name], None, vectors["image_shape"], vectors["settings"])
    for name, value in vectors["detections"].items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)


def test_nms_drops_boxes_of_no_area_and_keeps_the_first_of_equals():
    boxes = np.array([[0, 0, 0, 9], [0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 4.5], [20, 20, 30, 30]], np.float32)
    assert host.nms(boxes, np.array([9, 1, 1, 0.5, 0.2], np.float32), 0.5, 10) == [1, 3, 4]
    assert host.nms(boxes, np.array([9, 1, 1, 0.5, 0.2], np.float32), 0.49, 1) == [1]


def test_nothing_found(vectors):
    settings = vectors["settings"] | {"score_threshold": 1.0}
    graphs = {"pyramid": vectors["pyramid"], "boxes": vectors["heads"]}
    found = host.detect(lambda name, _: graphs[name], None, vectors["image_shape"], settings)
    assert found["boxes"].shape == (0, 4) and found["masks"].shape == (0, 28, 28) and not len(found["classes"])


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_javascript():
    command = ["node", str(ROOT / "demo" / "browser" / "host.test.mjs"), str(PATH)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
