"""Non-maximum suppression (greedy, by decreasing score), with a TensorFlow kernel and a portable twin.

Boxes are yxyx in continuous pixels, and a box is dropped where its IoU with a kept one is above the threshold, as in
torchvision. Of equal scores the lower index goes first. Boxes of no or of infinite area, boxes with a NaN and boxes
whose score is not above the threshold are never kept. Arithmetic is in float32 whatever the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.tensor import Tensor

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
        indices (max_output,) int32 by decreasing score, 0 past the end, and how many of them are valid (), int32.
    """
    boxes, scores = ops.cast(boxes, "float32"), ops.cast(scores, "float32")
    good = ops.logical_and(_has_area(boxes), scores > score_threshold)  # a NaN is not above anything
    # TFLite's kernel keeps boxes of no area again and again unless their score rules them out.
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


def _has_area(boxes: Tensor) -> Tensor:
    size = box_ops.sides(boxes)
    return ops.all(ops.logical_and(size > 0.0, size < float("inf")), axis=-1)


def _portable(boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float) -> tuple[Tensor, Tensor]:
    indices, count = ops.zeros((max_output,), "int32"), ops.zeros((), "int32")
    # A row that never comes out, so that there is a best one among no boxes.
    boxes = ops.pad(boxes, ((0, 1), (0, 0)))
    scores = ops.pad(scores, ((0, 1),), constant_values=2.0 * _NEVER)

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
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    iou_threshold: float,
    score_threshold: float = _NEVER,
    portable: bool = False,
) -> tuple[Tensor, Tensor]:
    """`nms` of each image by itself: (B, N, 4), (B, N) -> indices (B, max_output), valid (B,), both int32."""

    def one(pair: tuple) -> tuple[Tensor, Tensor]:
        return nms(pair[0], pair[1], max_output, iou_threshold, score_threshold, portable)

    return _each_image(one, (boxes, scores), ("int32", "int32"))


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    portable: bool = False,
    static_shapes: bool = False,
    class_agnostic: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Detections from all (RoI, class) pairs: threshold, NMS within each class, the best over all classes.

    Args:
        boxes: (B, R, C, 4), a box for each RoI and class.
        scores: (B, R, C).
        score_threshold: pairs with a score of at most this are dropped.
        iou_threshold: of the NMS of each class.
        max_detections: detections kept an image, D.
        portable: as for `nms`; all R * C pairs then take part in every step.
        static_shapes: no shape depends on the number of pairs above the threshold, as XLA and TFLite want it.
        class_agnostic: pairs of different classes suppress each other too.

    Returns:
        boxes (B, D, 4) and scores (B, D) float32, classes (B, D) int32 counted from 1, roi_indices (B, D) int32 and the
        number of detections (B,) int32. Rows past the number are 0.
    """
    portable = portable or keras.backend.backend() != "tensorflow"
    num_classes = scores.shape[-1]

    def one(pair: tuple) -> tuple[Tensor, ...]:
        # (R, C, 4) -> (R * C, 4)
        flat_boxes = ops.cast(ops.reshape(pair[0], (-1, 4)), "float32")
        flat_scores = ops.cast(ops.reshape(pair[1], (-1,)), "float32")
        pairs = ops.arange(ops.shape(flat_scores)[0], dtype="int32")
        candidates = ops.logical_and(_has_area(flat_boxes), flat_scores > score_threshold)
        if not (portable or static_shapes):
            # Few of the pairs pass the threshold, and all that follows costs by the pair.
            import tensorflow as tf

            pairs = tf.cast(tf.where(candidates)[:, 0], tf.int32)
            flat_boxes, flat_scores = ops.take(flat_boxes, pairs, axis=0), ops.take(flat_scores, pairs)
            candidates = ops.take(candidates, pairs)
        usable = ops.where(candidates[:, None], flat_boxes, 0.0)  # without NaN
        keep, count = nms(
            usable if class_agnostic else _class_planes(usable, pairs % num_classes, num_classes),
            ops.where(candidates, flat_scores, 2.0 * _NEVER),
            max_detections,
            iou_threshold,
            portable=portable,
        )
        valid = ops.arange(max_detections, dtype="int32") < count
        # One row of zeros at the end, so that an image without candidates has something to gather.
        keep = ops.where(valid, keep, ops.shape(flat_scores)[0])
        kept_boxes = ops.take(ops.pad(usable, ((0, 1), (0, 0))), keep, axis=0)
        kept_scores = ops.take(ops.pad(flat_scores, ((0, 1),)), keep)
        kept_pairs = ops.take(ops.pad(pairs, ((0, 1),)), keep)
        classes = ops.where(valid, kept_pairs % num_classes + 1, 0)
        return kept_boxes, kept_scores, classes, kept_pairs // num_classes, count

    return _each_image(one, (boxes, scores), ("float32", "float32", "int32", "int32", "int32"))


def _class_planes(boxes: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Move boxes (N, 4) so that those of different classes never overlap and those of one class keep their IoU.

    The planes form a square, each wider than the extent of all boxes. With 90 classes and 1344 pixels coordinates stay
    below 2^14, where float32 resolves 1/1024 of a pixel; planes in one row would leave 1/128.
    """
    side = math.ceil(math.sqrt(num_classes))
    flat = ops.pad(ops.reshape(boxes, (-1,)), ((0, 1),))  # the 0 stands for an empty list
    pitch = ops.max(flat) - ops.min(flat) + 1.0
    shift = ops.cast(ops.stack([classes // side, classes % side], axis=-1), "float32") * pitch
    return boxes + ops.concatenate([shift, shift], axis=-1)


def _each_image(
    function: Callable[[tuple], tuple], inputs: tuple[Tensor, ...], dtypes: tuple[str, ...]
) -> tuple[Tensor, ...]:
    """Map over the batch; unrolled where its size is known, since a loop is slow and no TFLite builtin."""
    batch = inputs[0].shape[0]
    if batch is not None:
        results = [function(tuple(x[i] for x in inputs)) for i in range(batch)]
        return tuple(ops.stack(column) for column in zip(*results, strict=True))
    import tensorflow as tf

    return tf.map_fn(function, inputs, fn_output_signature=tuple(tf.as_dtype(d) for d in dtypes))
