"""Non-maximum suppression (greedy, by decreasing score) and Soft-NMS, with a TensorFlow kernel and portable twins.

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
# Boxes that the portable form decides on at a time.
_TILE = 512


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
    boxes, scores = _only_good(boxes, scores, score_threshold)
    if portable or keras.backend.backend() != "tensorflow":
        return _portable(boxes, scores, max_output, iou_threshold)
    indices, _, count = _kernel(boxes, scores, max_output, iou_threshold, _NEVER, 0.0)
    return indices, count


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    max_output: int,
    sigma: float,
    score_threshold: float,
    portable: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best box, multiply the score of each other one by exp(-IoU^2 / sigma), and again (Bodla et al. 2017).

    A .tflite file's kernel differs in one case: it drops a box that equals a better one, where exp(-1 / sigma)
    of its score would be left.

    Args:
        boxes: (N, 4).
        scores: (N,), not negative.
        max_output: length of the result.
        sigma: above 0; 0.5 as published.
        score_threshold: boxes are kept only with a score above this, then as at first.
        portable: as for `nms`.

    Returns:
        indices (max_output,) int32 and scores (max_output,) float32 by decreasing score, 0 past the end, and how many
        of them are valid (), int32.
    """
    boxes, scores = _only_good(boxes, scores, score_threshold)
    if portable or keras.backend.backend() != "tensorflow":
        return _portable_soft(boxes, scores, max_output, sigma, score_threshold)
    # The kernel's formula is exp(-IoU^2 / (2 sigma)).
    return _kernel(boxes, scores, max_output, 1.0, score_threshold, sigma / 2.0)


def _only_good(boxes: Tensor, scores: Tensor, score_threshold: float) -> tuple[Tensor, Tensor]:
    """Boxes and scores, those that are never kept with a score below every threshold."""
    boxes, scores = ops.cast(boxes, "float32"), ops.cast(scores, "float32")
    good = ops.logical_and(_has_area(boxes), scores > score_threshold)  # a NaN is not above anything
    # TFLite's kernel keeps boxes of no area again and again unless their score rules them out.
    return ops.where(good[:, None], boxes, 0.0), ops.where(good, scores, 2.0 * _NEVER)


def _kernel(
    boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float, score_threshold: float, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """TensorFlow's: indices and scores (max_output,), and how many are valid."""
    import tensorflow as tf

    result = tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes,
        scores=scores,
        max_output_size=max_output,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        soft_nms_sigma=sigma,
        pad_to_max_output_size=True,
    )
    for values in (result.selected_indices, result.selected_scores):
        values.set_shape((max_output,))
    return result.selected_indices, result.selected_scores, result.valid_outputs


def _has_area(boxes: Tensor) -> Tensor:
    size = box_ops.sides(boxes)
    return ops.all(ops.logical_and(size > 0.0, size < float("inf")), axis=-1)


def _portable(boxes: Tensor, scores: Tensor, max_output: int, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """The boxes in tiles by decreasing score, so that what is kept takes some steps a tile and not one a box."""
    boxes, scores = ops.stop_gradient(boxes), ops.stop_gradient(scores)  # no backend differentiates such a loop
    order = ops.argsort(-scores)
    order, exists = (ops.pad(x, ((0, _TILE),)) for x in (order, ops.take(scores, order) > _NEVER))
    boxes = ops.pad(boxes, ((0, 1), (0, 0)))  # so that there is a row to take among no boxes
    earlier = ops.arange(_TILE)[:, None] < ops.arange(_TILE)[None, :]
    slots = ops.arange(max_output, dtype="int32")

    def unfinished(tile: Tensor, indices: Tensor, count: Tensor) -> Tensor:
        # Behind the last box that exists, and so behind the last tile, there is none.
        return ops.logical_and(ops.take(exists, tile * _TILE), count < max_output)

    def add_tile(tile: Tensor, indices: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = tile * _TILE + ops.arange(_TILE, dtype="int32")
        own = ops.take(order, rows)
        own_boxes = ops.take(boxes, own, axis=0)
        kept = ops.logical_and(
            (slots < count)[:, None], _over(ops.take(boxes, indices, axis=0), own_boxes, iou_threshold)
        )
        free = ops.logical_and(ops.take(exists, rows), ops.logical_not(ops.any(kept, axis=0)))
        drops = ops.logical_and(_over(own_boxes, own_boxes, iou_threshold), earlier)
        keep = _undropped(free, drops)
        place = count + ops.cumsum(ops.cast(keep, "int32")) - 1
        hits = ops.logical_and(keep, place == slots[:, None])  # (max_output, tile)
        chosen = ops.take(own, ops.argmax(hits, axis=1))
        indices = ops.where(ops.any(hits, axis=1), ops.cast(chosen, "int32"), indices)
        count = ops.minimum(count + ops.sum(ops.cast(keep, "int32")), max_output)
        return tile + 1, indices, ops.cast(count, "int32")

    start = (ops.zeros((), "int32"), ops.zeros((max_output,), "int32"), ops.zeros((), "int32"))
    _, indices, count = ops.while_loop(unfinished, add_tile, start)
    return indices, count


def _portable_soft(
    boxes: Tensor, scores: Tensor, max_output: int, sigma: float, score_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A box a step: every score depends on all that was kept before."""
    boxes = ops.pad(ops.stop_gradient(boxes), ((0, 1), (0, 0)))  # so that there is a row among no boxes
    scores = ops.pad(ops.stop_gradient(scores), ((0, 1),), constant_values=_NEVER)
    rows, slots = ops.arange(ops.shape(scores)[0], dtype="int32"), ops.arange(max_output, dtype="int32")

    def unfinished(scores: Tensor, indices: Tensor, kept: Tensor, count: Tensor) -> Tensor:
        return ops.logical_and(ops.max(scores) > score_threshold, count < max_output)

    def add_best(scores: Tensor, indices: Tensor, kept: Tensor, count: Tensor) -> tuple[Tensor, ...]:
        best = ops.cast(ops.argmax(scores), "int32")
        indices = ops.where(slots == count, best, indices)
        kept = ops.where(slots == count, ops.max(scores), kept)
        overlaps = box_ops.iou(ops.take(boxes, best[None], axis=0), boxes)[0]
        decayed = scores * ops.exp(-ops.square(overlaps) / sigma)
        return ops.where(rows == best, _NEVER, decayed), indices, kept, count + 1

    start = (scores, ops.zeros_like(slots), ops.zeros((max_output,), "float32"), ops.zeros((), "int32"))
    _, indices, kept, count = ops.while_loop(unfinished, add_best, start)
    return indices, kept, count


def _over(boxes: Tensor, others: Tensor, iou_threshold: float) -> Tensor:
    return box_ops.iou(boxes, others) > iou_threshold


def _undropped(free: Tensor, drops: Tensor) -> Tensor:
    """Which of the boxes (T,) that are free no kept box before them drops; drops (T, T) bool, by row, of column.

    A box depends on those before it alone, so each pass makes at least one more of them final, and what a pass does not
    change is final as a whole: in practice after as many passes as boxes drop each other in a row, about ten.
    """

    def changes(before: Tensor, keep: Tensor) -> Tensor:
        return ops.any(before != keep)

    def again(before: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        return keep, ops.logical_and(free, ops.logical_not(ops.any(ops.logical_and(drops, keep[:, None]), axis=0)))

    _, keep = ops.while_loop(changes, again, again(free, free))
    return keep


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
    soft_sigma: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Detections from all (RoI, class) pairs: threshold, NMS within each class, the best over all classes.

    Args:
        boxes: (B, R, C, 4), a box for each RoI and class.
        scores: (B, R, C).
        score_threshold: pairs with a score of at most this are dropped; with soft_sigma, also those that come to it.
        iou_threshold: of the NMS of each class.
        max_detections: detections kept an image, D.
        portable: as for `nms`; all R * C pairs then take part in every step.
        static_shapes: no shape depends on the number of pairs above the threshold, as XLA and TFLite want it.
        class_agnostic: pairs of different classes suppress each other too.
        soft_sigma: Soft-NMS of each class with this sigma in place of NMS; 0: off.

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
        planes = usable if class_agnostic else _class_planes(usable, pairs % num_classes, num_classes)
        ranked = ops.where(candidates, flat_scores, 2.0 * _NEVER)
        if soft_sigma:
            keep, soft_scores, count = soft_nms(planes, ranked, max_detections, soft_sigma, score_threshold, portable)
        else:
            keep, count = nms(planes, ranked, max_detections, iou_threshold, portable=portable)
        valid = ops.arange(max_detections, dtype="int32") < count
        # One row of zeros at the end, so that an image without candidates has something to gather.
        keep = ops.where(valid, keep, ops.shape(flat_scores)[0])
        kept_boxes = ops.take(ops.pad(usable, ((0, 1), (0, 0))), keep, axis=0)
        kept_scores = ops.take(ops.pad(flat_scores, ((0, 1),)), keep)
        kept_scores = ops.where(valid, soft_scores, 0.0) if soft_sigma else kept_scores
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
    if keras.backend.backend() == "jax":
        return ops.vectorized_map(function, inputs)
    batch = inputs[0].shape[0]
    if batch is not None:
        results = [function(tuple(x[i] for x in inputs)) for i in range(batch)]
        return tuple(ops.stack(column) for column in zip(*results, strict=True))
    import tensorflow as tf

    return tf.map_fn(function, inputs, fn_output_signature=tuple(tf.as_dtype(d) for d in dtypes))
