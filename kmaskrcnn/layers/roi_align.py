"""RoIAlign over the levels of a feature pyramid (He et al. 2017, section 3; FPN, section 4.2, equation 1)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.roi_align import roi_align_crop_and_resize, roi_align_gather, roi_align_lookup
from kmaskrcnn.ops.roi_align_inputs import RoIAlignInputs
from kmaskrcnn.ops.tensor import Tensor

LEVELS = (2, 3, 4, 5)
_CANONICAL_LEVEL, _CANONICAL_SIZE = 4, 224.0
# Boxes are clipped to this many pixels around the origin, where float32 arithmetic on them stays finite.
_FARTHEST = 1e6
# Feature pixels along the side of a square RoI on its level: 14 to 28 (below P2 and above P5 fewer and more).
_MIDDLE_SIDE = 21
_KERNELS = {
    "crop_and_resize": roi_align_crop_and_resize,
    "gather": roi_align_gather,
    "lookup": roi_align_lookup,
}


def roi_levels(boxes: Tensor) -> Tensor:
    """The level 2..5 that each RoI (..., 4) is pooled from: floor(4 + log2(sqrt(area) / 224)), clamped -> (...)."""
    side = ops.sqrt(box_ops.area(boxes))
    # The small addend keeps an exact power of two on its upper side, as in torchvision.
    level = ops.floor(_CANONICAL_LEVEL + ops.log(side / _CANONICAL_SIZE + 1e-6) / math.log(2.0))
    return ops.cast(ops.clip(level, LEVELS[0], LEVELS[-1]), "int32")


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class RoIAlign(keras.layers.Layer):
    """Pool RoIs from P2..P5, each from the level that fits its size.

    Call with features, a dict of P2..P5 (B, H, W, C), and boxes (B, R, 4) yxyx in image pixels; returns
    (B, R, S, S, C). `pool` takes a flat list of RoIs instead. Boxes get no gradient.

    Args:
        output_size: S.
        sampling_ratio: bilinear samples along each side of a bin; 0: one a feature pixel. "lookup", whose shapes must
            be known, then takes the ratio of a RoI of middle size on its level.
        aligned: shift by half a pixel (Detectron2); False as in torchvision.
        implementation: "crop_and_resize" (TensorFlow), "gather" (any backend, XLA), "lookup" (TFLite; TensorFlow with a
            known number of RoIs), or "auto", which is the first on TensorFlow and the second elsewhere.

    Raises:
        ValueError: crop_and_resize or lookup on another backend than TensorFlow, or sampling ratio 0 on JAX.
    """

    def __init__(
        self,
        output_size: int,
        sampling_ratio: int = 2,
        aligned: bool = False,
        implementation: str = "auto",
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32
        on_tensorflow = keras.backend.backend() == "tensorflow"
        if implementation in ("crop_and_resize", "lookup") and not on_tensorflow:
            raise ValueError(f"roi_align_implementation={implementation!r}: needs the TensorFlow backend; use 'gather'")
        if not sampling_ratio and keras.backend.backend() == "jax":
            raise ValueError("roi_sampling_ratio=0: has no fixed shapes, which JAX needs; use 2")
        self.output_size, self.sampling_ratio, self.aligned = output_size, sampling_ratio, aligned
        self.implementation = implementation
        if implementation == "auto":
            implementation = "crop_and_resize" if on_tensorflow else "gather"
        self._kernel = implementation
        self._ratio = sampling_ratio
        if not sampling_ratio and implementation == "lookup":
            self._ratio = math.ceil(_MIDDLE_SIDE / output_size)

    def call(self, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        batch, rois = ops.shape(boxes)[:2]
        owner = ops.repeat(ops.arange(batch, dtype="int32"), rois)
        pooled = self.pool(features, ops.reshape(boxes, (-1, 4)), owner)
        return ops.reshape(pooled, (batch, rois, *pooled.shape[1:]))  # (B * R, S, S, C) -> (B, R, S, S, C)

    def pool(self, features: dict[str, Tensor], boxes: Tensor, batch_indices: Tensor) -> Tensor:
        """Boxes (K, 4) of the images batch_indices (K,) int32 -> (K, S, S, C); K may be 0."""
        # A NaN would become an index outside the map, which crop_and_resize does not check.
        boxes = ops.where(ops.isnan(boxes), 0.0, ops.clip(boxes, -_FARTHEST, _FARTHEST))
        inputs = RoIAlignInputs(
            [features[f"P{level}"] for level in LEVELS],
            [0.5**level for level in LEVELS],
            boxes,
            batch_indices,
            roi_levels(boxes) - LEVELS[0],
            self.output_size,
            self._ratio,
            self.aligned,
        )
        return _KERNELS[self._kernel](inputs)

    def get_config(self) -> dict:
        config = {
            "output_size": self.output_size,
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
            "implementation": self.implementation,
        }
        return {**super().get_config(), **config}
