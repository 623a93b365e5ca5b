"""Non-maximum suppression (greedy, by falling score), with a TensorFlow kernel and a portable twin.

Boxes are yxyx in continuous pixels, and a box is dropped where its IoU with a kept one is above the threshold, as in
torchvision. Of equal scores the lower index goes first. Boxes of no area, boxes with a NaN and boxes whose score is
not above the threshold are never kept.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskrcnn.ops import boxes as box_ops

Tensor = Any

# Below every score, and finite: the kernel compares scores with it.
_NEVER = -1e30


def nms(
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    iou_threshold: float,
    score_threshold: float = _NEVER,
    portable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keep the best of each cluster of overlapping boxes.

    Args:
        boxes: (N, 4).
        scores: (N,).
        max_output: length of the result.
        iou_threshold: a box is dropped where its IoU with a kept one is above this.
        score_threshold: boxes are kept only with a score above this.
        portable: use the keras.ops form, which every backend and XLA run; it is the default off TensorFlow.

    Returns:
        indices (max_output,) int32 by falling score, 0 past the end, and how many of them are valid (), int32.
    """
    size = boxes[:, 2:] - boxes[:, :2]
    good = ops.logical_and(ops.all(size > 0.0, axis=-1), scores > score_threshold)  # a NaN is not above anything
    boxes = ops.where(good[:, None], boxes, 0.0)
    scores = ops.where(good, scores, 2.0 * _NEVER)
    if portable or keras.backend.backend() != "tensorflow":
        return _portable(boxes, scores, max_output, iou_threshold)
    import tensorflow as tf

    result = tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes,
        scores=scores,
        max_output_size=max_output,
        iou_threshold=iou_threshold,
        score_threshold=_NEVER,
        soft_nms_sigma=0.0,
        pad_to_max_output_size=True,
    )
    indices = result.selected_indices
    indices.set_shape((max_output,))
    return indices, result.valid_outputs


def _portable(boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float) -> tuple[Tensor, Tensor]:
    indices, count = ops.zeros((max_output,), "int32"), ops.zeros((), "int32")
    if boxes.shape[0] == 0:
        return indices, count

    def keep_best(i: Tensor, state: tuple) -> tuple:
        indices, count, scores = state
        best = ops.cast(ops.argmax(scores), "int32")
        found = ops.take(scores, best) > _NEVER
        indices = ops.where(ops.logical_and(ops.arange(max_output, dtype="int32") == i, found), best, indices)
        overlap = box_ops.iou(ops.take(boxes, best, axis=0)[None], boxes)[0]
        dropped = ops.logical_or(overlap > iou_threshold, ops.arange(ops.shape(scores)[0], dtype="int32") == best)
        return indices, count + ops.cast(found, "int32"), ops.where(dropped, 2.0 * _NEVER, scores)

    indices, count, _ = ops.fori_loop(0, max_output, keep_best, (indices, count, scores))
    return indices, count


def batched_nms(
    boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float, score_threshold: float = _NEVER
) -> tuple[Tensor, Tensor]:
    """`nms` of each image by itself: (B, N, 4), (B, N) -> indices (B, max_output), valid (B,)."""

    def one(pair: tuple) -> tuple[Tensor, Tensor]:
        return nms(pair[0], pair[1], max_output, iou_threshold, score_threshold)

    return _each_image(one, (boxes, scores), ("int32", "int32"))


def multiclass_nms(
    boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Detections from all (RoI, class) pairs: threshold, NMS within each class, the best over all classes.

    Args:
        boxes: (B, R, C, 4), a box for each RoI and class, within the image.
        scores: (B, R, C).
        score_threshold: pairs with a score of at most this are dropped.
        iou_threshold: of the NMS of each class.
        max_detections: detections kept an image, D.

    Returns:
        boxes (B, D, 4), scores (B, D), classes (B, D) int32 counted from 1, roi_indices (B, D) int32 and the number of
        detections (B,) int32. Rows past the number are 0.
    """
    num_classes = scores.shape[-1]

    def one(pair: tuple) -> tuple[Tensor, ...]:
        # (R, C, 4) -> (R * C, 4)
        flat_boxes, flat_scores = ops.reshape(pair[0], (-1, 4)), ops.reshape(pair[1], (-1,))
        candidates = None
        if keras.backend.backend() == "tensorflow":
            # Few of the pairs pass the threshold, and all that follows costs by the pair.
            candidates = ops.cast(ops.nonzero(flat_scores > score_threshold)[0], "int32")
            flat_boxes, flat_scores = ops.take(flat_boxes, candidates, axis=0), ops.take(flat_scores, candidates)
        pairs = candidates if candidates is not None else ops.arange(ops.shape(flat_scores)[0], dtype="int32")
        # Each class gets a plane of its own. The planes lie just past the largest coordinate apart: at 90 classes of
        # 1344 pixels float32 still resolves 1/64 of a pixel, and the boxes that are returned are the unmoved ones.
        spread = ops.max(ops.concatenate([ops.reshape(flat_boxes, (-1,)), ops.zeros((1,))])) + 1.0
        moved = flat_boxes + (ops.cast(pairs % num_classes, "float32") * spread)[:, None]
        keep, count = nms(moved, flat_scores, max_detections, iou_threshold, score_threshold)
        valid = ops.arange(max_detections, dtype="int32") < count
        # One row of zeros at the end, so that an image without candidates has something to gather.
        keep = ops.where(valid, keep, ops.shape(flat_scores)[0])
        kept_boxes = ops.take(ops.pad(flat_boxes, ((0, 1), (0, 0))), keep, axis=0)
        kept_scores = ops.take(ops.pad(flat_scores, ((0, 1),)), keep)
        kept_pairs = ops.take(ops.pad(pairs, ((0, 1),)), keep)
        classes = ops.where(valid, kept_pairs % num_classes + 1, 0)
        return kept_boxes, kept_scores, classes, kept_pairs // num_classes, count

    return _each_image(one, (boxes, scores), ("float32", "float32", "int32", "int32", "int32"))


def _each_image(function: Any, inputs: tuple[Tensor, ...], dtypes: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Map over the batch; unrolled where its size is known, since a loop is slow and TFLite has no good one."""
    batch = inputs[0].shape[0]
    if batch is not None:
        results = [function(tuple(x[i] for x in inputs)) for i in range(batch)]
        return tuple(ops.stack(column) for column in zip(*results, strict=True))
    import tensorflow as tf

    return tf.map_fn(function, inputs, fn_output_signature=tuple(tf.as_dtype(d) for d in dtypes))
