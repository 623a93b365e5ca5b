"""What the host's part of a model for the GPU must give, made by the model itself: host_vectors.json.

    python -m tests.golden.make_host_vectors

Arrays are {"shape": [...], "data": base64 of little-endian float32}. `pyramid` and `heads` are outputs of the graphs;
`pooled_masks` and `masks` go in and out of the third; `detections` are the model's own, by its own RoIAlign and NMS.
`pasted` are the pixels of each detection's mask in an image of `size`, by rows, "1" for set.
"""

import base64
import json
from pathlib import Path

import keras
import numpy as np

from kmaskrcnn import MaskRCNN
from kmaskrcnn.export import gpu_graphs
from kmaskrcnn.results.mask_paste import paste_mask
from tests.conftest import TINY

PATH = Path(__file__).with_name("host_vectors.json")
HEIGHT, WIDTH, IMAGE, SIZE = 64, 96, (64, 70), (50, 55)
SETTINGS = {
    "backbone_norm": "frozen_bn",
    "fpn_channels": 8,
    "rpn_pre_nms_top_k": 60,
    "rpn_post_nms_top_k": 24,
    "max_detections": 10,
    "score_threshold": 0.3,
}


def random_model(**settings) -> MaskRCNN:
    """Random weights, but scores that differ from class to class and boxes that move."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**(TINY | settings | {"dtype": "float32"}))
    rng = np.random.default_rng(0)
    for layer, deviation in ((model.box_head.class_logits, 0.4), (model.box_head.deltas, 0.3)):
        layer.kernel.assign(rng.normal(0, deviation, layer.kernel.shape))
    model.mask_head.logits_kernel.assign(rng.normal(0, 0.5, model.mask_head.logits_kernel.shape))
    return model


def random_image(seed: int = 0) -> np.ndarray:
    """(64, 96, 3) uint8 with blocks, what lies beyond `IMAGE` is for the caller to fill."""
    small = np.random.default_rng(seed).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return np.repeat(np.repeat(small, 8, 0), 8, 1)


def packed(array) -> dict:
    array = np.ascontiguousarray(array, "<f4")
    return {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode()}


def main() -> None:
    model = random_model(**SETTINGS)
    functions = gpu_graphs.GpuFunctions(model, HEIGHT, WIDTH)
    images = random_image()[None].astype(np.float32)
    images[:, :, IMAGE[1] :] = model._mean
    pyramid = {name: np.asarray(value) for name, value in functions.pyramid(images).items()}
    found = model({"images": images, "image_shapes": np.array([IMAGE], np.int32)})
    count = int(found["num_detections"][0])
    found = {name: np.asarray(value)[0][:count] for name, value in found.items() if name != "num_detections"}

    # The model's own layers make the rest.
    features = {name: value for name, value in pyramid.items() if name.startswith("P")}
    from kmaskrcnn.layers.rpn import level_anchors, propose

    maps = model.pyramid(model.preprocess(images, None)[0])
    outputs = {level: model.rpn_head(feature) for level, feature in maps.items()}
    shapes = np.array([IMAGE], np.int32)
    rois, scores = propose(outputs, level_anchors(maps, model.config), shapes, model.config, False)
    pooled = model.box_roi_align(maps, rois)[0]
    heads = functions.boxes(pooled)
    boxes = np.zeros((1, SETTINGS["max_detections"], 4), np.float32)
    boxes[0, :count] = found["boxes"]
    pooled_masks = np.asarray(model.mask_roi_align(maps, boxes)[0]).copy()
    pooled_masks[count:] = 0
    scale = np.array([SIZE[0] / IMAGE[0], SIZE[1] / IMAGE[1]] * 2, np.float32)
    pasted = [paste_mask(m, b * scale, *SIZE) for m, b in zip(found["masks"], found["boxes"], strict=True)]
    valid = int(np.isfinite(np.asarray(scores)).sum())
    vectors = {
        "settings": gpu_graphs.host_settings(model, HEIGHT, WIDTH),
        "image_shape": list(IMAGE),
        "pyramid": {name: packed(value) for name, value in (features | pyramid).items()},
        "proposals": packed(np.asarray(rois)[0, :valid]),
        "pooled": packed(pooled[:valid]),
        "heads": {name: packed(value) for name, value in heads.items()},
        "detections": {name: packed(value) for name, value in found.items()},
        "pooled_masks": packed(pooled_masks),
        "masks": packed(functions.masks(pooled_masks)["masks"]),
        "size": list(SIZE),
        "pasted": ["".join(str(int(v)) for v in mask.ravel()) for mask in pasted],
    }
    PATH.write_text(json.dumps(vectors) + "\n")
    print(f"{PATH}: {PATH.stat().st_size / 1e3:.0f} kB, {valid} proposals, {count} detections")


if __name__ == "__main__":
    main()
