"""PointRend masks: a coarse mask, refined point by point where it is uncertain (Kirillov, Wu, He, Girshick 2020).

Numbers and conventions are those of Detectron2's PointRend project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.stacks import build_fcs, fc_stack
from kmaskrcnn.ops.points import grid_points, most_uncertain, points_in_image, sample_points, uncertain_points
from kmaskrcnn.ops.tensor import Tensor

COARSE_SIDE = 7
# In inference all cells of a mask up to this side are points, and so many of each larger one.
FULL_SIDE = 28
SUBDIVISION_POINTS = FULL_SIDE * FULL_SIDE
TRAIN_POINTS, OVERSAMPLING, IMPORTANCE = 14 * 14, 3, 0.75
_STRIDE = 4.0  # of P2, which alone is read


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class PointRendMaskHead(keras.layers.Layer):
    """A coarse head of fully connected layers, and a point head, a perceptron on the features of one point.

    The coarse head sees P2 at the centers of S x S cells of a RoI and predicts 7 x 7 logits of each class. The point
    head sees P2 at a point and the coarse logits of all classes there, the latter before each of its layers; P2 has the
    detail that RoIAlign on a coarser level has lost. There is no normalization in either, as published.

    Call with features, a dict with P2 (B, H, W, C), boxes (K, 4) yxyx in image pixels, classes (K,) in 0..num_classes
    and batch_indices (K,) int32; returns logits (K, M, M), float32, M = 7 * 2^subdivisions, of each RoI's class, found
    by subdivision (section 3.1, inference): the logits of up to 28 x 28 cells are the point head's, then the side is
    doubled, bilinearly, and those of the 784 most uncertain cells are the point head's again. `sample` is for training.

    Args:
        num_classes: object classes; there are no logits of the background.
        pool_size: S, even.
        conv_channels: width of the coarse head's convolution, before which wider features are reduced to it.
        fc_channels: units of the coarse head's fully connected layers.
        point_channels: units of the point head's layers.
        class_agnostic: the point head has one logit for all classes; the coarse head has one of each, as in Detectron2.
        subdivisions: how often a side of 7 is doubled.
    """

    def __init__(
        self,
        num_classes: int,
        pool_size: int = 14,
        conv_channels: int = 256,
        fc_channels: Sequence[int] = (1024, 1024),
        point_channels: Sequence[int] = (256, 256, 256),
        class_agnostic: bool = False,
        subdivisions: int = 5,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)  # boxes stay float32
        self._settings = {
            "num_classes": num_classes,
            "pool_size": pool_size,
            "conv_channels": conv_channels,
            "fc_channels": tuple(fc_channels),
            "point_channels": tuple(point_channels),
            "class_agnostic": class_agnostic,
            "subdivisions": subdivisions,
        }
        self.num_classes, self.pool_size, self.class_agnostic = num_classes, pool_size, class_agnostic
        self.side = COARSE_SIDE * 2**subdivisions
        policy = self.dtype_policy
        self._relu = {"activation": "relu", "kernel_initializer": initializers.kaiming_normal(), "dtype": policy}
        # Convolutions whose windows do not overlap, as matrix products: some kernels get the shape of no RoI wrong.
        self.reduce: keras.layers.Dense | None = None  # 1 x 1
        self.conv = keras.layers.Dense(conv_channels, name="conv", **self._relu)  # 2 x 2, stride 2
        self.fcs = fc_stack(fc_channels, policy)
        self.coarse = keras.layers.Dense(
            COARSE_SIDE * COARSE_SIDE * num_classes,
            kernel_initializer=initializers.normal(0.001),
            dtype=policy,
            name="coarse",
        )
        self.point_fcs = [
            keras.layers.Dense(units, name=f"point_fc{i}", **self._relu) for i, units in enumerate(point_channels, 1)
        ]

    def build(self, input_shape: tuple) -> None:
        """Args: input_shape: (B, H, W, C) of P2."""
        channels, pool = input_shape[-1], self.pool_size
        fine, width = channels, self.conv.units
        if channels > width:
            self.reduce = keras.layers.Dense(width, name="reduce", **self._relu)
            self.reduce.build((None, channels))
            channels = width
        self.conv.build((None, 2 * 2 * channels))
        build_fcs([*self.fcs, self.coarse], (pool // 2) ** 2 * width)
        units = fine
        for fc in self.point_fcs:
            fc.build((None, units + self.num_classes))
            units = fc.units
        masks = 1 if self.class_agnostic else self.num_classes
        # A row a class, so that a RoI takes its class's row, as in the mask head.
        self.logits_kernel = self.add_weight(
            name="logits_kernel", shape=(masks, units + self.num_classes), initializer=initializers.normal(0.001)
        )
        self.logits_bias = self.add_weight(name="logits_bias", shape=(masks,), initializer="zeros")
        self.built = True

    def call(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, batch_indices: Tensor) -> Tensor:
        coarse = self.coarse_logits(features, boxes, batch_indices)
        side = min(FULL_SIDE, self.side)
        points = ops.broadcast_to(grid_points(side)[None], (ops.shape(boxes)[0], side * side, 2))
        logits = self.point_logits(features, boxes, classes, batch_indices, coarse, points)
        while side < self.side:
            logits = ops.reshape(logits, (-1, side, side, 1))
            side *= 2
            logits = ops.image.resize(logits, (side, side), "bilinear", antialias=False, data_format="channels_last")
            logits = ops.reshape(logits, (-1, side * side))
            places = most_uncertain(logits, SUBDIVISION_POINTS)
            points = (ops.cast(ops.stack([places // side, places % side], axis=-1), "float32") + 0.5) / side
            refined = self.point_logits(features, boxes, classes, batch_indices, coarse, points)
            logits = _with_values(logits, places, refined)
        return ops.reshape(logits, (-1, side, side))

    def sample(
        self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, batch_indices: Tensor, seeds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is trained: the coarse mask, and the point head at random points of which most are uncertain ones.

        Args:
            features, boxes, classes, batch_indices: as for a call.
            seeds: (K,) integers, of the points of each RoI.

        Returns:
            The coarse logits (K, 7, 7) of each RoI's class, points (K, P, 2) yx in 0..1 of the RoI, and the logits
            (K, P) there.
        """
        coarse = self.coarse_logits(features, boxes, batch_indices)
        own = ops.reshape(coarse, (-1, COARSE_SIDE * COARSE_SIDE, self.num_classes))
        own = ops.take_along_axis(own, _rows(classes)[:, None, None], axis=-1)
        own = ops.reshape(own, (-1, COARSE_SIDE, COARSE_SIDE))
        points = uncertain_points(own, TRAIN_POINTS, OVERSAMPLING, IMPORTANCE, seeds)
        return own, points, self.point_logits(features, boxes, classes, batch_indices, coarse, points)

    def coarse_logits(self, features: dict[str, Tensor], boxes: Tensor, batch_indices: Tensor) -> Tensor:
        """(K, 7, 7, num_classes) float32."""
        grid = grid_points(self.pool_size)[None]
        x = sample_points(features["P2"], points_in_image(boxes, grid) / _STRIDE, batch_indices)
        x = ops.reshape(ops.cast(x, self.compute_dtype), (-1, x.shape[-1]))  # (K, S * S, C) -> (K * S * S, C)
        x = x if self.reduce is None else self.reduce(x)
        half, channels = self.pool_size // 2, x.shape[-1]
        x = ops.reshape(x, (-1, 2, half, 2 * channels))  # (K * S / 2, 2, S / 2, 2C)
        x = self.conv(ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, 2 * 2 * channels)))  # (K * S / 2 * S / 2, F)
        x = ops.reshape(x, (-1, half * half * self.conv.units))
        for fc in self.fcs:
            x = fc(x)
        return ops.cast(ops.reshape(self.coarse(x), (-1, COARSE_SIDE, COARSE_SIDE, self.num_classes)), "float32")

    def point_logits(
        self,
        features: dict[str, Tensor],
        boxes: Tensor,
        classes: Tensor,
        batch_indices: Tensor,
        coarse: Tensor,
        points: Tensor,
    ) -> Tensor:
        """Logits (K, P) float32, of each RoI's class, at points (K, P, 2) yx in 0..1 of the RoIs."""
        count, dtype = points.shape[1], self.compute_dtype
        fine = sample_points(features["P2"], points_in_image(boxes, points) / _STRIDE, batch_indices)
        owners = ops.arange(ops.shape(boxes)[0], dtype="int32")
        coarse = ops.cast(sample_points(coarse, points * COARSE_SIDE, owners), dtype)
        x, coarse = (ops.reshape(v, (-1, v.shape[-1])) for v in (ops.cast(fine, dtype), coarse))  # (K * P, C)
        for fc in self.point_fcs:
            x = fc(ops.concatenate([x, coarse], axis=-1))
        x = ops.concatenate([x, coarse], axis=-1)
        x = ops.reshape(x, (-1, count, x.shape[-1]))
        rows = ops.zeros_like(classes) if self.class_agnostic else _rows(classes)
        kernel = ops.cast(ops.take(self.logits_kernel, rows, axis=0), dtype)
        logits = ops.cast(ops.matmul(x, kernel[:, :, None])[..., 0], "float32")  # (K, P, C) x (K, C, 1) -> (K, P)
        return logits + ops.cast(ops.take(self.logits_bias, rows, axis=0), "float32")[:, None]

    def get_config(self) -> dict:
        return {**super().get_config(), **self._settings}


def _rows(classes: Tensor) -> Tensor:
    """The rows of classes 1..num_classes; those of the background, 0, are never read and take the first."""
    return ops.maximum(classes - 1, 0)


def _with_values(x: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """x (K, N) with values (K, P) in the places (K, P)."""
    rows, columns = ops.shape(x)
    flat = places + (ops.arange(rows, dtype="int32") * columns)[:, None]
    flat = ops.reshape(flat, (-1, 1))
    return ops.reshape(ops.scatter_update(ops.reshape(x, (-1,)), flat, ops.reshape(values, (-1,))), (-1, columns))
