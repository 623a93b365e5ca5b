"""Variations of the model by name, as settings that differ from the plain one's."""

from typing import Any

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask scoring": {"mask_scoring": True},
    "PointRend": {"mask_point_rend": True},
    "cascade": {"cascade_ious": (0.5, 0.6, 0.7)},
    "GIoU": {"box_loss": "giou", "box_loss_weight": 10},
    "class-agnostic boxes and masks": {"box_class_agnostic": True, "mask_class_agnostic": True},
    "masks of 56 x 56": {"mask_pool_size": 28},
}
