"""Images with more objects than the defaults are made for: none is lost to a limit that nobody set."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn import model as model_module
from kmaskrcnn.config import ModelConfig
from kmaskrcnn.layers.rpn import num_proposals, propose


@pytest.mark.parametrize(("detections", "expected"), [(20, (300, 200)), (100, (300, 200)), (2000, (4000, 4000))])
def test_there_are_twice_as_many_proposals_as_detections(detections, expected):
    config = ModelConfig(max_detections=detections, rpn_pre_nms_top_k=300, rpn_post_nms_top_k=200)
    assert num_proposals(config) == expected
    trained = config.rpn_pre_nms_top_k_train, config.rpn_post_nms_top_k_train
    assert num_proposals(config, training=True) == trained


def test_proposals_of_one_level_are_as_many_as_asked_for():
    side, config = 40, ModelConfig(max_detections=600, rpn_pre_nms_top_k=100, rpn_post_nms_top_k=100)
    y, x = np.mgrid[:side, :side].reshape(2, -1) * 8.0
    anchors = {"P2": tf.constant(np.stack([y, x, y + 8, x + 8], axis=1), tf.float32)}
    outputs = {"P2": (tf.zeros((1, side * side)), tf.zeros((1, side * side, 4)))}
    _, scores = propose(outputs, anchors, tf.constant([[8 * side, 8 * side]]), config, training=False)
    assert np.isfinite(scores).sum() == 1200


@pytest.mark.parametrize(
    "heads", [{}, {"cascade_ious": (0.5, 0.6)}, {"box_class_agnostic": True, "mask_class_agnostic": True}]
)
def test_many_detections_are_found_in_chunks_as_they_are_at_once(heads, tiny_settings, batch, monkeypatch):
    keras.utils.set_random_seed(7)
    settings = (
        tiny_settings | heads | {"max_detections": 90, "score_threshold": 0.0, "rpn_nms_iou": 0.95, "nms_iou": 0.9}
    )
    model = MaskRCNN(**settings)
    run = tf.function(lambda images: model(images, training=False), [tf.TensorSpec((None, None, None, 3))])
    once = run(batch["images"])
    monkeypatch.setattr(model_module, "_BOXES_AT_ONCE", 37)
    monkeypatch.setattr(model_module, "_MASKS_AT_ONCE", 13)
    most = []

    def record(layer):
        pool = layer.pool

        def pooled(features, boxes, owners):
            tf.numpy_function(lambda n: most.append(int(n)), [tf.shape(boxes)[0]], [])
            return pool(features, boxes, owners)

        monkeypatch.setattr(layer, "pool", pooled)

    record(model.box_roi_align)
    record(model.mask_roi_align)
    run = tf.function(lambda images: model(images, training=False), [tf.TensorSpec((None, None, None, 3))])
    chunked = run(batch["images"])
    assert (once["num_detections"].numpy() > 40).all()
    assert max(most) <= 37 and len(most) > 10
    for name in once:
        np.testing.assert_allclose(chunked[name], once[name], atol=1e-4, err_msg=name)
