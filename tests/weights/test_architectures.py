"""Files that are no Mask R-CNN of ours are named as what they are, and nothing open is guessed."""

import pickle

import numpy as np
import pytest
import yaml

from kmaskrcnn.weights import WeightsError, write_tensors
from kmaskrcnn.weights.convert import detect_format, import_file
from kmaskrcnn.weights.detectron2 import detectron2_settings, open_questions
from kmaskrcnn.weights.detectron2_config import read_source_config
from kmaskrcnn.weights.torchvision import torchvision_settings
from tests.weights.state_dicts import cascade_state, detectron2_state, torchvision_state

ONE = np.zeros((4, 4), "float32")


def saved(tmp_path, state):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": state}))
    return tmp_path / "m.pkl"


def without_masks(state):
    return {name: value for name, value in state.items() if "mask" not in name}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("roi_heads.keypoint_head.conv_fcn1.weight", "a Keypoint R-CNN"),
        ("roi_heads.box_predictor.0.cls_score.weight", "a Cascade R-CNN of 1 stages; 2 to 5 can be read"),
        ("sem_seg_head.p2.0.weight", "a Panoptic FPN"),
        ("roi_heads.res5.0.conv1.weight", "a C4 model"),
    ],
)
def test_other_detectors_are_named(tmp_path, extra, words):
    path = saved(tmp_path, detectron2_state() | {extra: ONE})
    with pytest.raises(WeightsError, match=rf"m\.pkl: is {words}"):
        detectron2_settings(path)


def test_a_c4_model_has_no_pyramid_to_tell_it_by(tmp_path):
    state = {"backbone.stem.conv1.weight": ONE, "backbone.res2.0.conv1.weight": ONE}
    with pytest.raises(WeightsError, match="a C4 or DC5 model, without a feature pyramid"):
        detect_format(saved(tmp_path, state))


def test_class_agnostic_heads_of_torchvision_are_named(tmp_path):
    for name, rows, words in (
        ("box_predictor.bbox_pred", 4, "its boxes are class-agnostic, .* read from Detectron2 alone"),
        ("mask_predictor.mask_fcn_logits", 1, "its masks are class-agnostic, .* read from Detectron2 alone"),
    ):
        state = torchvision_state()
        state[f"roi_heads.{name}.weight"] = state[f"roi_heads.{name}.weight"][:rows]
        write_tensors(tmp_path / "w.safetensors", state)
        with pytest.raises(WeightsError, match=words):
            torchvision_settings(tmp_path / "w.safetensors")


def test_a_faster_rcnn_loads_on_request_with_a_fresh_mask_head(tmp_path):
    write_tensors(tmp_path / "f.safetensors", without_masks(torchvision_state()))
    with pytest.raises(WeightsError, match="is a Faster R-CNN, without masks; fresh_masks=True loads it"):
        import_file(tmp_path / "f.safetensors")
    imported = import_file(tmp_path / "f.safetensors", fresh_masks=True)
    assert imported.report.untouched and all("mask_head" in path for path in imported.report.untouched)
    assert len(imported.report.used) == len(without_masks(torchvision_state()))
    settings = detectron2_settings(saved(tmp_path, without_masks(detectron2_state())), fresh_masks=True)
    assert settings["mask_conv_channels"] == (8,) * 4
    write_tensors(tmp_path / "m.safetensors", torchvision_state())
    with pytest.raises(WeightsError, match="has a mask head of its own"):
        import_file(tmp_path / "m.safetensors", fresh_masks=True)


def test_mobile_bodies_that_are_numbered_otherwise_are_refused(tmp_path):
    """Blocks 2 and 3 have equal widths behind the first convolution: a shifted body would load into wrong places."""
    state = torchvision_state(backbone="mobilenet_v2")
    shifted = {name.replace("body.16.", "body.15."): value for name, value in state.items() if "body.15." not in name}
    fpn = dict(state)
    fpn["backbone.fpn.inner_blocks.2.0.weight"] = np.zeros((8, 64, 1, 1), "float32")
    for tensors, words in (
        (shifted, r"body\.16\.conv\.0\.0\.weight is absent: of torchvision's mobile networks"),
        (fpn, r"features of \[24, 32, 64, 320\] channels, here on those of the blocks 3, 6, 13 and 17"),
    ):
        write_tensors(tmp_path / "w.safetensors", tensors)
        with pytest.raises(WeightsError, match=words):
            torchvision_settings(tmp_path / "w.safetensors")


def test_detectron2_files_that_can_be_read_in_two_ways_are_refused(tmp_path):
    path = saved(tmp_path, detectron2_state(caffe=False, backbone="resnet50"))
    with pytest.raises(WeightsError, match=r"give source_config=config\.yaml .*, or backbone_stride_in"):
        import_file(path)
    assert open_questions(path, {"backbone_stride_in_1x1", "image_std", "rgb"}) == []
    pixels = {"pixel_mean": np.array([123.0, 116.0, 103.0]), "pixel_std": np.ones(3)}
    assert open_questions(saved(tmp_path, detectron2_state(caffe=False) | pixels), ()) == []
    assert open_questions(saved(tmp_path, detectron2_state()), ()) == []


def test_group_norm_is_told_from_the_tensors(tmp_path):
    state = detectron2_state(caffe=False)
    state = {name: value for name, value in state.items() if not name.endswith(("running_mean", "running_var"))}
    assert detectron2_settings(saved(tmp_path, state))["backbone_norm"] == "gn"


def config_tree():
    """What Detectron2 writes for a model with a ResNet-50, as far as it is read."""
    return {
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 640, "MAX_SIZE_TEST": 1000},
        "TEST": {"DETECTIONS_PER_IMAGE": 50},
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "MASK_ON": True,
            "KEYPOINT_ON": False,
            "PIXEL_MEAN": [123.675, 116.28, 103.53],
            "PIXEL_STD": [58.395, 57.12, 57.375],
            "BACKBONE": {"FREEZE_AT": 0},
            "RESNETS": {"NORM": "SyncBN", "STRIDE_IN_1X1": False, "DEPTH": 50, "NUM_GROUPS": 1},
            "ANCHOR_GENERATOR": {
                "SIZES": [[16], [32], [64], [128], [256]],
                "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
                "OFFSET": 0.0,
            },
            "RPN": {
                "NMS_THRESH": 0.7,
                "PRE_NMS_TOPK_TEST": 1000,
                "POST_NMS_TOPK_TEST": 500,
                "PRE_NMS_TOPK_TRAIN": 2000,
                "POST_NMS_TOPK_TRAIN": 1000,
            },
            "ROI_HEADS": {
                "NAME": "StandardROIHeads",
                "SCORE_THRESH_TEST": 0.1,
                "NMS_THRESH_TEST": 0.4,
                "BATCH_SIZE_PER_IMAGE": 512,
                "POSITIVE_FRACTION": 0.25,
            },
            "ROI_BOX_HEAD": {
                "CLS_AGNOSTIC_BBOX_REG": False,
                "POOLER_TYPE": "ROIAlignV2",
                "POOLER_SAMPLING_RATIO": 2,
            },
            "ROI_MASK_HEAD": {"CLS_AGNOSTIC_MASK": False, "POOLER_RESOLUTION": 14},
        },
    }


def test_source_config_settles_what_the_file_leaves_open(tmp_path):
    tree = config_tree()
    # A list that stands in two places is written once, as in Detectron2's own files.
    tree["MODEL"]["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"] = weights = [10.0, 10.0, 5.0, 5.0]
    tree["MODEL"]["ROI_BOX_CASCADE_HEAD"] = {"BBOX_REG_WEIGHTS": [weights]}
    tree["MODEL"]["ROI_BOX_HEAD"] |= {"BBOX_REG_LOSS_TYPE": "giou", "BBOX_REG_LOSS_WEIGHT": 10.0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert "&id001" in (tmp_path / "config.yaml").read_text()
    path = saved(tmp_path, detectron2_state(caffe=False))
    imported = import_file(path, source_config=tmp_path / "config.yaml")
    config = imported.config
    assert config.model.backbone_norm == "sync_bn" and config.model.image_std == (58.395, 57.12, 57.375)
    assert config.model.anchor_sizes == (16, 32, 64, 128, 256) and config.data.min_size == 640
    assert (config.model.box_loss, config.model.box_loss_weight) == ("giou", 10.0)
    assert (config.model.rpn_box_loss, config.model.rpn_box_loss_weight) == ("smooth_l1", 1.0)
    assert config.model.nms_iou == 0.4 and config.model.max_detections == 50
    bgr = import_file(path, options={"rgb": False}, image_std=(1.0, 1.0, 1.0), backbone_stride_in_1x1=False)
    ours, theirs = (m.backbone.get_layer("conv1").kernel.numpy() for m in (imported.model, bgr.model))
    np.testing.assert_array_equal(ours, theirs[:, :, ::-1])
    assert "nms_iou=0.4 (known of this file)" in imported.assumptions
    assert "nms_iou=0.5 (usual for detectron2)" in bgr.assumptions


def test_the_source_config_of_a_cascade(tmp_path):
    tree, heads = config_tree(), {"IOUS": [0.4, 0.6], "BBOX_REG_WEIGHTS": [[10, 10, 5, 5], [20, 20, 10, 10]]}
    tree["MODEL"]["ROI_HEADS"]["NAME"], tree["MODEL"]["ROI_BOX_CASCADE_HEAD"] = "CascadeROIHeads", heads
    tree["MODEL"]["ROI_BOX_HEAD"]["CLS_AGNOSTIC_BBOX_REG"] = True
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    imported = import_file(saved(tmp_path, cascade_state(2)), source_config=path)
    assert "cascade_ious=0.4,0.6 (known of this file)" in imported.assumptions
    model = imported.config.model
    assert (model.cascade_ious, model.roi_positive_iou, model.box_class_agnostic) == ((0.4, 0.6), 0.4, True)
    heads["BBOX_REG_WEIGHTS"][1] = [10, 10, 5, 5]
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(WeightsError, match="BBOX_REG_WEIGHTS are not 10,10,5,5 times 1, 2, 3"):
        read_source_config(path)


@pytest.mark.parametrize("state", [torchvision_state, detectron2_state])
def test_no_file_has_a_mask_iou_head(tmp_path, state):
    path = saved(tmp_path, state())
    with pytest.raises(WeightsError, match="has no MaskIoU head; convert it without mask_scoring"):
        import_file(path, mask_scoring=True)


def test_files_of_programs_without_cascades_have_one_box_head(tmp_path):
    write_tensors(tmp_path / "w.safetensors", torchvision_state())
    with pytest.raises(WeightsError, match=r"w\.safetensors: has one box head and no cascade_ious; convert it without"):
        import_file(tmp_path / "w.safetensors", cascade_ious=(0.5, 0.6))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"KEYPOINT_ON": True}, "keypoints cannot be read"),
        ({"ROI_HEADS": {"NAME": "Res5ROIHeads"}}, "ROI_HEADS.NAME is 'Res5ROIHeads', known are Standard"),
        ({"RESNETS": {**config_tree()["MODEL"]["RESNETS"], "NORM": "LN"}}, "RESNETS.NORM is 'LN', known are"),
        ({"RPN": {**config_tree()["MODEL"]["RPN"], "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0]}}, "coding of the RPN's"),
        (
            {"ROI_BOX_HEAD": {**config_tree()["MODEL"]["ROI_BOX_HEAD"], "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0]}},
            r"the coding of the boxes cannot be read, .*BBOX_REG_WEIGHTS is \[1\.0, ",
        ),
        (
            {"ROI_BOX_HEAD": {**config_tree()["MODEL"]["ROI_BOX_HEAD"], "USE_SIGMOID_CE": True}},
            "classes that each have a sigmoid",
        ),
        ({"FPN": {"FUSE_TYPE": "avg"}}, r"a pyramid of means cannot be read, MODEL\.FPN\.FUSE_TYPE is 'avg'"),
        (
            {"ROI_BOX_HEAD": {**config_tree()["MODEL"]["ROI_BOX_HEAD"], "POOLER_TYPE": "ROIPool"}},
            r"ROI_BOX_HEAD\.POOLER_TYPE is 'ROIPool', known are ROIAlignV2, ROIAlign",
        ),
        (
            {"ROI_MASK_HEAD": {**config_tree()["MODEL"]["ROI_MASK_HEAD"], "POOLER_TYPE": "ROIAlign"}},
            r"ROI_MASK_HEAD\.POOLER_TYPE is 'ROIAlign' and that of boxes 'ROIAlignV2'",
        ),
        ({"PIXEL_STD": ["a", 1, 1]}, "a setting of another kind than expected"),
        ({"RPN": {}}, r"has no MODEL\.RPN\.NMS_THRESH; give the whole config\.yaml"),
    ],
)
def test_source_configs_of_other_models_are_one_line(tmp_path, change, words):
    tree = config_tree()
    tree["MODEL"] |= change
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(WeightsError, match=rf"config\.yaml: .*{words}"):
        read_source_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("_BASE_: ../Base.yaml\nMODEL: {}", "refines"),
        ("model: {_target_: a.b}", "is a LazyConfig"),
        ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", "has aliases as no config"),
        ("a: &a [1]\nb: [" + "*a, " * 40 + "]", "has aliases as no config"),
        ("[" * 5000, "is nested deep"),
        ("just text", r"is not a config\.yaml of Detectron2"),
        ("a: !!python/object/apply:os.system [ls]", "not readable YAML"),
    ],
)
def test_damaged_source_configs_are_one_line(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(WeightsError, match=words) as caught:
        read_source_config(tmp_path / "config.yaml")
    assert "\n" not in str(caught.value)
