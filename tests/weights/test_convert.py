"""The command that converts files, the presets, and COCO's labels."""

import hashlib
import json
import pathlib
import pickle

import numpy as np
import pytest

from kmaskrcnn import ConfigError, MaskRCNN, Predictor
from kmaskrcnn.errors import TrainingError
from kmaskrcnn.weights import WeightsError, write_tensors
from kmaskrcnn.weights.coco_labels import COCO_LABELS, COCO_LABELS_WITH_GAPS, labels_for
from kmaskrcnn.weights.convert import detect_format, import_file, starting_weights, write_folder
from kmaskrcnn.weights.presets import PRESETS, Preset
from tests.processes import ROOT, run_program, run_python
from tests.weight_files import server as servers
from tests.weights import test_matterport
from tests.weights.state_dicts import detectron2_state, torchvision_state

INSTANCES = ROOT.parent / "shared" / "data" / "coco_open"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_tensors(folder / "tv.safetensors", torchvision_state(classes=90))
    (folder / "d2.pkl").write_bytes(pickle.dumps({"model": detectron2_state(), "__author__": "somebody"}))
    test_matterport.saved(folder, test_matterport.matterport_state())
    return {
        "torchvision": folder / "tv.safetensors",
        "detectron2": folder / "d2.pkl",
        "matterport": folder / "mask_rcnn_coco.h5",
    }


def run(*arguments, cwd=ROOT):
    return run_python("-m", "kmaskrcnn", "weights", *arguments, cwd=cwd, TF_CPP_MIN_LOG_LEVEL="3")


def test_command_writes_a_folder_that_the_predictor_opens(files, tmp_path):
    done = run(files["torchvision"], f"--output={tmp_path / 'model'}", "--max_detections=7", "--score_threshold=0")
    assert done.returncode == 0, done.stderr
    assert "tensors loaded" in done.stdout and "90 classes: person, bicycle, car" in done.stdout
    predictor = Predictor.from_directory(tmp_path / "model")
    assert predictor.config.model.max_detections == 7
    assert predictor.config.model.round_anchors
    assert predictor.labels == COCO_LABELS_WITH_GAPS
    direct = import_file(files["torchvision"]).model
    for a, b in zip(predictor.model.weights, direct.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    prediction = Predictor(predictor.model, predictor.config.replace(min_size=64, max_size=96), predictor.labels)
    found = prediction.predict(image)
    assert len(found) == 7
    assert all(r["category_id"] == c for r, c in zip(found.to_coco(1), found.classes, strict=True))


def test_command_reports_what_is_wrong(files, tmp_path):
    state = torchvision_state()
    del state["rpn.head.cls_logits.bias"]
    state["roi_heads.extra.weight"] = np.zeros(2, "float32")
    write_tensors(tmp_path / "w.safetensors", state)
    done = run_program("-m", "kmaskrcnn", "weights", tmp_path / "w.safetensors", f"--output={tmp_path / 'model'}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "  missing: rpn.head.cls_logits.bias\n  left over: roi_heads.extra.weight\n" in done.stderr
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["torchvision", "detectron2", "matterport"])
def test_formats_are_told_from_the_content(files, name):
    assert detect_format(files[name]) == name


def test_files_of_each_format_become_models(files, tmp_path):
    imported = import_file(files["matterport"], class_names=["a", "b", "c"])
    assert (imported.config.data.min_size, imported.config.data.max_size) == (800, 1024)
    assert any("RoIAlign" in line for line in imported.differences)
    assert imported.labels.category_ids == (1, 2, 3)
    imported = import_file(files["detectron2"], image_std=(2.0, 2.0, 2.0))
    assert imported.config.model.image_std == (2.0, 2.0, 2.0)
    assert (imported.config.model.roi_sampling_ratio, imported.config.data.resize_method) == (0, "detectron2")
    assert imported.labels.class_names == ("class 1", "class 2", "class 3")
    write_folder(imported, tmp_path)
    assert json.loads((tmp_path / "labels.json").read_text())["category_ids"] == [1, 2, 3]
    np.testing.assert_array_equal(
        MaskRCNN.from_preset(tmp_path).fpn.weights[0].numpy(), imported.model.fpn.weights[0].numpy()
    )
    other = MaskRCNN.from_preset(tmp_path, num_classes=5)  # all but the last layers
    assert other.box_head.class_logits.kernel.shape[-1] == 6
    np.testing.assert_array_equal(other.fpn.weights[0].numpy(), imported.model.fpn.weights[0].numpy())
    with pytest.raises(TrainingError, match="holds a model with"):
        write_folder(import_file(files["detectron2"], nms_iou=0.4), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(WeightsError, match="already holds a model"):
        write_folder(imported, tmp_path)  # what is there may have been trained since
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_classes_on_request(files):
    with pytest.raises(WeightsError, match=r"2 names for 90 classes; num_classes=2 keeps everything but"):
        import_file(files["torchvision"], class_names=["a", "b"])
    imported = import_file(files["torchvision"], class_names=["a", "b"], num_classes=2)
    assert imported.model.config.num_classes == 2
    assert len(imported.report.untouched) == 6


def test_options_belong_to_formats(files):
    with pytest.raises(WeightsError, match="norm_epsilon is not an option for files of detectron2"):
        import_file(files["detectron2"], options={"norm_epsilon": 0.0})
    with pytest.raises(ConfigError, match="no_such"):
        import_file(files["detectron2"], no_such=1)


def test_a_backbone_alone_is_no_detector(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"layer1.0.conv1.weight": np.zeros(3, "float32")})
    with pytest.raises(WeightsError, match=r"the first tensor is layer1\.0\.conv1\.weight; .* init_weights"):
        import_file(tmp_path / "w.safetensors")


def test_coco_ids_have_their_gaps():
    assert len(COCO_LABELS.class_names) == len(set(COCO_LABELS.class_names)) == 80
    assert sorted(set(range(1, 91)) - set(COCO_LABELS.category_ids)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    ids = dict(zip(COCO_LABELS.class_names, COCO_LABELS.category_ids, strict=True))
    assert [ids[n] for n in ("person", "stop sign", "backpack", "dining table", "toothbrush")] == [1, 13, 27, 67, 90]
    for number, name in zip(COCO_LABELS_WITH_GAPS.category_ids, COCO_LABELS_WITH_GAPS.class_names, strict=True):
        assert ids.get(name, number) == number
    assert COCO_LABELS_WITH_GAPS.class_names.count("N/A") == 10
    assert labels_for(80) == COCO_LABELS


def test_labels_agree_with_coco_files():
    paths = sorted(INSTANCES.glob("*.json")) if INSTANCES.exists() else []
    trees = [tree for tree in (json.loads(p.read_text()) for p in paths) if isinstance(tree, dict)]
    categories = {c["id"]: c["name"] for tree in trees for c in tree.get("categories", ())}
    if not categories:
        pytest.skip(f"no COCO categories in {INSTANCES}")
    ids = dict(zip(COCO_LABELS.category_ids, COCO_LABELS.class_names, strict=True))
    assert categories.items() <= ids.items()


def test_preset_without_a_network_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, preset in PRESETS.items():
        with pytest.raises(WeightsError) as caught:
            MaskRCNN.from_preset(name, offline=True)
        assert f"download {preset.url} to {tmp_path / 'models' / preset.filename}" in str(caught.value)
        assert preset.checksum in preset.filename
    with pytest.raises(WeightsError, match=r"nonsense: no such file, folder or preset; presets are torchvision_r50"):
        MaskRCNN.from_preset("nonsense")
    with pytest.raises(WeightsError, match=r"init_weights=nonsense: no such .*; presets are imagenet, imagenet_v2"):
        starting_weights("nonsense")


def test_preset_is_downloaded_and_converted_once(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "0")
    monkeypatch.chdir(tmp_path)
    data = files["torchvision"].read_bytes()
    name = f"small-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    preset = Preset(f"https://example.org/models/{name}", name[6:14], 1.0, 1.0, "torchvision")
    monkeypatch.setitem(PRESETS, "small", preset)
    with servers.running() as server:
        server.files[f"/models/{name}"], server.cut_after = data, len(data) // 2 + 1
        monkeypatch.setenv("KMASKRCNN_MIRROR", server.base)
        model = MaskRCNN.from_preset("small", max_detections=7)
        assert len(server.requests) == 2  # the second half after the cut
        folder = pathlib.Path(starting_weights("small"))
        assert len(server.requests) == 2
    assert capsys.readouterr().out.count("converting") == 1
    assert model.config.max_detections == 7
    assert Predictor.from_directory(folder).labels == COCO_LABELS_WITH_GAPS
    expected = import_file(files["torchvision"]).model
    for a, b in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    fewer = MaskRCNN.from_preset("small", num_classes=2)
    np.testing.assert_array_equal(fewer.fpn.weights[0].numpy(), model.fpn.weights[0].numpy())


def test_preset_finds_its_file_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    preset = PRESETS["detectron2_r50_fpn_lsj_400"]
    state = detectron2_state(backbone="resnet50", v2=True, caffe=False)
    (tmp_path / "models" / preset.filename).write_bytes(pickle.dumps({"model": state}))
    config = import_file("detectron2_r50_fpn_lsj_400", max_detections=5).config
    assert config.model.backbone_stride_in_1x1
    assert config.model.image_std == (1.0, 1.0, 1.0)
    assert config.model.max_detections == 5
    assert config.data.min_size == 1024


def test_file_with_a_published_name_must_have_its_checksum(tmp_path):
    name = PRESETS["torchvision_r50_fpn"].filename
    write_tensors(tmp_path / name, torchvision_state())
    with pytest.raises(WeightsError, match="its name says bf2d0c1e: download it again"):
        MaskRCNN.from_preset(tmp_path / name)
