"""The tensors of Detectron2's PointRend masks, and the settings that their shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.layers.point_rend import COARSE_SIDE, PointRendMaskHead
from kmaskrcnn.weights.layouts import flattened, same, to_conv, to_dense
from kmaskrcnn.weights.transfer import Entry, Transform, check_shapes, take_size

_COARSE, _POINT = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head"
PREDICTOR = f"{_POINT}.predictor.weight"
_REDUCE, _CONV = f"{_COARSE}.reduce_channel_dim_conv", f"{_COARSE}.reduce_spatial_dim_conv"
# As the project named them at first.
_OLD = (
    ("roi_heads.mask_coarse_head.", f"{_COARSE}."),
    ("roi_heads.mask_point_head.", f"{_POINT}."),
    (f"{_COARSE}.coarse_mask_fc", f"{_COARSE}.fc"),
)


def new_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file, those of an older version of the project under the names of today."""

    def renamed(name: str) -> str:
        for old, new in _OLD:
            name = new + name.removeprefix(old) if name.startswith(old) else name
        return name

    return {renamed(name): value for name, value in tensors.items()}


def point_rend_settings(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
    """The settings that the shapes of a PointRend model's mask heads tell; none where it has no point head.

    Raises:
        WeightsError: a tensor is absent or does not fit the others.
    """
    if PREDICTOR not in tensors:
        return {}

    def widths(prefix: str) -> tuple[int, ...]:
        found = {int(m[1]): len(v) for n, v in tensors.items() if (m := re.fullmatch(rf"{prefix}\.fc(\d+)\.weight", n))}
        return tuple(found[key] for key in sorted(found))

    width, fcs, points = take_size(tensors, f"{_CONV}.weight", 0, source), widths(_COARSE), widths(_POINT)
    if not fcs or not points:
        raise WeightsError(f"{source}: a PointRend model without fully connected layers, which is not read")
    outputs = take_size(tensors, f"{_COARSE}.prediction.weight", 0, source)
    flat = take_size(tensors, f"{_COARSE}.fc1.weight", 1, source)
    classes, side = outputs // COARSE_SIDE**2, math.isqrt(flat // width)
    masks = take_size(tensors, PREDICTOR, 0, source)
    channels = take_size(tensors, f"{_POINT}.fc1.weight", 1, source) - classes
    shapes: dict[str, tuple[int | None, ...]] = {
        f"{_REDUCE}.weight": (width, channels, 1, 1),
        f"{_CONV}.weight": (width, width if f"{_REDUCE}.weight" in tensors else channels, 2, 2),
        f"{_COARSE}.prediction.weight": (classes * COARSE_SIDE**2, fcs[-1]),
        PREDICTOR: (1 if masks == 1 else classes, points[-1] + classes, 1),
    }
    for i, (inputs, units) in enumerate(zip((width * side**2, *fcs), fcs, strict=False), 1):
        shapes[f"{_COARSE}.fc{i}.weight"] = (units, inputs)
    for i, (inputs, units) in enumerate(zip((channels, *points), points, strict=False), 1):
        shapes[f"{_POINT}.fc{i}.weight"] = (units, inputs + classes, 1)
    check_shapes(tensors, shapes, source)
    return {
        "mask_point_rend": True,
        "mask_pool_size": 2 * side,
        "mask_conv_channels": (width,),
        "mask_fc_channels": fcs,
        "mask_point_channels": points,
        "mask_class_agnostic": classes > 1 and masks == 1,
        "mask_target_samples": 0,  # its masks are bitmaps, which RoIAlign cuts out
    }


def point_rend_entries(head: PointRendMaskHead) -> Iterator[Entry]:
    """An entry for every weight of the mask heads, by the tensors of Detectron2.

    The point head sees the coarse masks of all classes, so that its layers go with the classes as the last ones do.
    """

    def layer(name: str, target: Any, kernel: Transform, bias: Transform = same, last: bool = False) -> Iterator[Entry]:
        yield Entry(target.kernel, (f"{name}.weight",), kernel, last)
        yield Entry(target.bias, (f"{name}.bias",), bias, last)

    if head.reduce is not None:
        yield from layer(_REDUCE, head.reduce, lambda x: x[:, :, 0, 0].T)
    yield from layer(_CONV, head.conv, lambda x: to_conv(x).reshape(-1, len(x)))
    for i, fc in enumerate(head.fcs, 1):
        yield from layer(f"{_COARSE}.fc{i}", fc, flattened(head.pool_size // 2) if i == 1 else to_dense)
    cells = _cells_first(head.num_classes)
    yield from layer(f"{_COARSE}.prediction", head.coarse, lambda x: cells(x).T, cells, last=True)
    for i, fc in enumerate(head.point_fcs, 1):
        yield from layer(f"{_POINT}.fc{i}", fc, lambda x: x[:, :, 0].T, last=True)
    yield Entry(head.logits_kernel, (PREDICTOR,), lambda x: x[:, :, 0], True)
    yield Entry(head.logits_bias, (f"{_POINT}.predictor.bias",), same, True)


def _cells_first(classes: int) -> Transform:
    """Rows of (class, cell) -> (cell, class)."""
    return lambda x: np.swapaxes(x.reshape(classes, -1, *x.shape[1:]), 0, 1).reshape(x.shape)
