"""Shared fixtures: a model small enough that a test takes seconds."""

import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import numpy as np
import pytest

# The same examples at each run, or a change would be blamed for what chance found; HYPOTHESIS_PROFILE=random searches.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None)
# A background job ignores these signals, and so would the programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

TINY = {
    "num_classes": 3,
    "backbone": "resnet18",
    "frozen_stages": 0,
    "backbone_norm": "gn",
    "fpn_channels": 32,
    "anchor_sizes": (16, 32, 64, 128, 256),
    "rpn_batch_size": 64,
    "rpn_pre_nms_top_k_train": 100,
    "rpn_pre_nms_top_k": 100,
    "rpn_post_nms_top_k_train": 60,
    "rpn_post_nms_top_k": 60,
    "roi_batch_size": 32,
    "box_fc_channels": (64,),
    "mask_conv_channels": (32,),
    "max_detections": 20,
}


@pytest.fixture
def tiny_settings():
    """Keywords of a small MaskRCNN."""
    return dict(TINY)


@pytest.fixture
def tiny_model(tiny_settings):
    """A small MaskRCNN with random weights, the same each time."""
    import keras

    from kmaskrcnn import MaskRCNN

    keras.utils.set_random_seed(7)
    return MaskRCNN(**tiny_settings)


def make_batch(batch=2, size=96, instances=6, filled=(2, 3), seed=0):
    """A training batch of bright rectangles on noise, padded to `instances` rows."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (batch, size, size, 3)).astype(np.uint8)
    boxes = np.zeros((batch, instances, 4), np.float32)
    classes = np.zeros((batch, instances), np.int32)
    masks = np.zeros((batch, instances, 28, 28), np.uint8)
    for b in range(batch):
        for i in range(filled[b % len(filled)]):
            y, x = rng.integers(0, size // 2, 2)
            h, w = rng.integers(size // 5, size // 2, 2)
            boxes[b, i] = y, x, y + h, x + w
            classes[b, i] = rng.integers(1, 4)
            masks[b, i] = 255
            images[b, y : y + h, x : x + w] = 60 * classes[b, i] + 60
    return {
        "images": images,
        "image_shapes": np.full((batch, 2), size, np.int32),
        "boxes": boxes,
        "classes": classes,
        "is_crowd": np.zeros((batch, instances), bool),
        "masks": masks,
        "mask_frames": boxes.copy(),
        "image_ids": np.arange(batch, dtype=np.int64),
        "sample_seeds": seed + np.arange(batch, dtype=np.int64),
    }


@pytest.fixture
def batch():
    """Two images of 96 x 96 with two and three objects."""
    return make_batch()
