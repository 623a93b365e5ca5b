"""What Keras sees of the model: its keywords, `compile`, `fit`, `evaluate`, `predict`, saving and loading."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import keras
from keras import ops

from kmaskrcnn.batch_checks import check_batch, check_dataset
from kmaskrcnn.config import Config, ConfigError, ModelConfig, UnknownSetting, fields, near_match
from kmaskrcnn.ops.tensor import Tensor

F = TypeVar("F", bound=Callable[..., None])

# And two more for each further stage of a cascade, and those of mask_scoring and mask_point_rend.
LOSSES = ("rpn_objectness", "rpn_box", "class", "box", "mask")
MASK_IOU_LOSS, MASK_POINT_LOSS = "mask_iou_loss", "mask_point_loss"
_D = ModelConfig  # whose fields are the defaults


def _names_wrong_keywords(function: F) -> F:
    """An __init__ that says of an unknown keyword which one was meant, which Python's own TypeError does not."""
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(self: Any, **keywords: Any) -> None:
        for name in keywords.keys() - set(known):
            if name in fields():
                group = "training, data or evaluation"
                raise UnknownSetting(f"{name!r} is a setting of {group} (kmaskrcnn.Config), not of the model")
            raise UnknownSetting(f"MaskRCNN has no keyword {name!r}{near_match(name, known)}")
        function(self, **keywords)

    return checked  # type: ignore[return-value]


class KerasInterface(keras.Model):
    """Base of `MaskRCNN`: holds its settings as `config`, and lets `_build_layers` make the network."""

    @_names_wrong_keywords
    def __init__(
        self,
        *,
        num_classes: int = _D.num_classes,
        backbone: str = _D.backbone,
        backbone_norm: str = _D.backbone_norm,
        backbone_stride_in_1x1: bool = _D.backbone_stride_in_1x1,
        stem_pool_padding: str = _D.stem_pool_padding,
        frozen_stages: int = _D.frozen_stages,
        image_mean: tuple[float, ...] = _D.image_mean,
        image_std: tuple[float, ...] = _D.image_std,
        fpn_channels: int = _D.fpn_channels,
        fpn_norm: str = _D.fpn_norm,
        anchor_sizes: tuple[float, ...] = _D.anchor_sizes,
        anchor_aspect_ratios: tuple[float, ...] = _D.anchor_aspect_ratios,
        round_anchors: bool = _D.round_anchors,
        fit_anchor_strides: bool = _D.fit_anchor_strides,
        rpn_conv_layers: int = _D.rpn_conv_layers,
        rpn_channels: int = _D.rpn_channels,
        rpn_batch_size: int = _D.rpn_batch_size,
        rpn_positive_fraction: float = _D.rpn_positive_fraction,
        rpn_positive_iou: float = _D.rpn_positive_iou,
        rpn_negative_iou: float = _D.rpn_negative_iou,
        rpn_pre_nms_top_k_train: int = _D.rpn_pre_nms_top_k_train,
        rpn_pre_nms_top_k: int = _D.rpn_pre_nms_top_k,
        rpn_nms_iou: float = _D.rpn_nms_iou,
        rpn_post_nms_top_k_train: int = _D.rpn_post_nms_top_k_train,
        rpn_post_nms_top_k: int = _D.rpn_post_nms_top_k,
        rpn_min_size: float = _D.rpn_min_size,
        rpn_box_loss: str = _D.rpn_box_loss,
        rpn_box_loss_beta: float = _D.rpn_box_loss_beta,
        rpn_box_loss_weight: float = _D.rpn_box_loss_weight,
        rpn_loss_normalizer: str = _D.rpn_loss_normalizer,
        roi_batch_size: int = _D.roi_batch_size,
        roi_positive_fraction: float = _D.roi_positive_fraction,
        roi_positive_iou: float = _D.roi_positive_iou,
        roi_sampling_ratio: int = _D.roi_sampling_ratio,
        roi_aligned: bool = _D.roi_aligned,
        roi_align_implementation: str = _D.roi_align_implementation,
        box_pool_size: int = _D.box_pool_size,
        box_conv_channels: tuple[int, ...] = _D.box_conv_channels,
        box_fc_channels: tuple[int, ...] = _D.box_fc_channels,
        box_class_agnostic: bool = _D.box_class_agnostic,
        cascade_ious: tuple[float, ...] = _D.cascade_ious,
        box_loss: str = _D.box_loss,
        box_loss_beta: float = _D.box_loss_beta,
        box_loss_weight: float = _D.box_loss_weight,
        mask_pool_size: int = _D.mask_pool_size,
        mask_conv_channels: tuple[int, ...] = _D.mask_conv_channels,
        mask_class_agnostic: bool = _D.mask_class_agnostic,
        head_norm: str = _D.head_norm,
        binary_mask_targets: bool = _D.binary_mask_targets,
        mask_target_samples: int = _D.mask_target_samples,
        max_mask_rois: int = _D.max_mask_rois,
        mask_scoring: bool = _D.mask_scoring,
        mask_point_rend: bool = _D.mask_point_rend,
        mask_fc_channels: tuple[int, ...] = _D.mask_fc_channels,
        mask_point_channels: tuple[int, ...] = _D.mask_point_channels,
        mask_subdivisions: int = _D.mask_subdivisions,
        score_threshold: float = _D.score_threshold,
        nms_iou: float = _D.nms_iou,
        soft_nms_sigma: float = _D.soft_nms_sigma,
        box_min_size: float = _D.box_min_size,
        class_agnostic_nms: bool = _D.class_agnostic_nms,
        max_detections: int = _D.max_detections,
        mask_paste: str = _D.mask_paste,
        seed: int = 0,
        name: str | None = None,
        dtype: Any = None,
    ):
        settings = {key: value for key, value in locals().items() if key in _MODEL_SETTINGS}
        _check_keras_settings(dtype)
        # Boxes must stay float32 under a mixed policy, so Keras must not cast the inputs.
        super().__init__(name=name or "mask_rcnn", dtype=dtype, autocast=False)
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        self.config: ModelConfig = Config().replace(**settings).model
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_jit = keras.backend.backend() != "tensorflow"  # the TensorFlow NMS kernel has no XLA form
        # Whether the mask branch runs on every RoI, padded rows too, so that no shape depends on the data.
        self.static_shapes = keras.backend.backend() != "tensorflow"
        stages = range(2, len(self.config.cascade_ious) + 1)
        self.loss_names = (*LOSSES, *(f"{loss}_stage{stage}" for stage in stages for loss in ("class", "box")))
        self.loss_names += (MASK_IOU_LOSS,) if self.config.mask_scoring else ()
        self.loss_names += (MASK_POINT_LOSS,) if self.config.mask_point_rend else ()
        self.loss_trackers = {name: keras.metrics.Mean(name=name) for name in self.loss_names}
        self._in_evaluation = False
        self._batch_is_checked = False
        self._build_layers()
        self._frozen_as_built = self._frozen_layers()

    def _build_layers(self) -> None:
        raise NotImplementedError

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Mapping[str, Tensor] | None = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Sum of the losses that `call` returned, divided by the number of replicas in sync.

        tf.distribute adds the gradients of the replicas up, so without the division the step would grow with them.
        """
        if y_pred is None or set(y_pred) != set(self.loss_names):
            raise ValueError(
                "MaskRCNN trains on batches that hold the ground truth (boxes, classes, is_crowd, masks, mask_frames); "
                f"this batch gave {sorted(y_pred or ())}"
            )
        for name, tracker in self.loss_trackers.items():
            tracker.update_state(y_pred[name])
        return sum(y_pred[name] for name in self.loss_names) / num_replicas()

    # Keras' own loops. Their first batch is looked at before a graph is made of it.

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, epochs: int = 1, **options: Any) -> Any:
        """Keras' `fit`, on batches that hold the ground truth (docs/design/model.md).

        Raises:
            ValueError: the first batch is not what the model trains on, or the data are endless and steps_per_epoch is
                not given.
        """
        options |= {"batch_size": batch_size, "epochs": epochs}
        options = {"x": x, **options, **check_dataset(x, y, self.config, options)}
        return super().fit(**options)

    def evaluate(self, x: Any = None, y: Any = None, batch_size: int | None = None, **options: Any) -> Any:
        """Keras' `evaluate`: the losses on batches that hold the ground truth, normalization in inference mode.

        AP comes from `kmaskrcnn.evaluation.evaluate`. Raises as `fit` does.
        """
        options |= {"batch_size": batch_size}
        if not options.get("_use_cached_eval_dataset"):  # in `fit`, which has looked at its validation data
            options |= check_dataset(x, y, self.config, options)
        options = {"x": x, **options}
        with self._evaluating():
            return super().evaluate(**options)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **options: Any) -> Any:
        self._check_first(x, y)
        return super().train_on_batch(x, y, *args, **options)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **options: Any) -> Any:
        self._check_first(x, y)
        with self._evaluating():
            return super().test_on_batch(x, y, *args, **options)

    def _check_first(self, x: Any, y: Any) -> None:
        if not self._batch_is_checked:
            check_batch(x, self.config, y)
            self._batch_is_checked = True

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within the context a batch that holds the ground truth gives losses in inference mode too."""
        before, self._in_evaluation = self._in_evaluation, True
        try:
            yield
        finally:
            self._in_evaluation = before

    # Saving and loading

    def get_config(self) -> dict:
        config = {
            "seed": self.seed,
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **dataclasses.asdict(self.config),
        }
        frozen = self._frozen_layers()
        return config if frozen == self._frozen_as_built else {**config, "frozen_layers": sorted(frozen)}

    def _named_layers(self) -> dict[str, keras.layers.Layer]:
        """The model, its parts and their layers, from the outside in."""
        parts = (
            self.backbone,
            self.fpn,
            self.rpn_head,
            self.box_head,
            self.cascade,
            self.mask_head,
            self.mask_iou_head,
        )
        named = {part.name: part for part in parts if part is not None}
        # The stages have layers of the same names.
        stages = {f"cascade/{stage.name}": stage for stage in (self.cascade.heads if self.cascade is not None else ())}
        inner = {
            f"{name}/{layer.name}": layer
            for name, part in {**named, **stages}.items()
            if name != "cascade"
            for layer in part._flatten_layers(include_self=False)
        }
        return {"": self, **named, **stages, **inner}

    def _frozen_layers(self) -> frozenset[str]:
        """Names of the layers whose `trainable` is off, which Keras does not save: its optimizer's slots go by it."""
        return frozenset(name for name, layer in self._named_layers().items() if not layer.trainable)

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> Any:
        config = dict(config)
        config["dtype"] = keras.dtype_policies.deserialize(config["dtype"])
        frozen = config.pop("frozen_layers", None)
        model = cls(**config)
        if frozen is not None:
            for layer_name, layer in model._named_layers().items():
                # Files of before name the layers of a cascade's stages without the stage.
                former = f"cascade/{layer.name}" if layer_name.startswith("cascade/") else layer_name
                layer.trainable = layer_name not in frozen and former not in frozen
        return model

    def export(self, *args: Any, **options: Any) -> None:
        """Not Keras' export, whose graph takes one image size and decodes no files.

        Raises:
            NotImplementedError: always; the message names what to use.
        """
        raise NotImplementedError(
            "MaskRCNN.export: Keras' graph would take one image size and decode no files; use "
            "kmaskrcnn.export.saved_model.export_saved_model, or `kmaskrcnn export` for a SavedModel or .tflite file"
        )


_MODEL_SETTINGS = frozenset(field.name for field in dataclasses.fields(ModelConfig))


def _check_keras_settings(dtype: Any) -> None:
    """Refuse what keras.json or keras.config may say and the network is not written for."""
    if keras.config.image_data_format() != "channels_last":
        raise ConfigError(
            f"image_data_format={keras.config.image_data_format()!r} in keras.json: MaskRCNN is written for "
            "'channels_last'; set that there, or call keras.config.set_image_data_format('channels_last') first"
        )
    if keras.config.floatx() != "float32":
        raise ConfigError(
            f"floatx={keras.config.floatx()!r} in keras.json: MaskRCNN is written for 'float32' (choose half precision "
            "by dtype='mixed_bfloat16'); set that there, or call keras.config.set_floatx('float32') first"
        )
    policy = keras.dtype_policies.get(dtype) if dtype is not None else keras.config.dtype_policy()
    if policy.variable_dtype != "float32":
        raise ConfigError(
            f"dtype={policy.name!r}: weights are float32; choose float32, mixed_bfloat16 or mixed_float16"
        )


def num_replicas() -> int:
    """Replicas in sync of the tf.distribute strategy in whose scope this is called; 1 off TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def over_replicas(counts: Tensor) -> Tensor:
    """Counts as each replica divides by them: of all replicas, by their number.

    The mean over the replicas of sums divided by these is what one device gives for the whole batch, however objects
    are spread over the replicas.
    """
    replicas = num_replicas()
    if replicas > 1:
        import tensorflow as tf

        counts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, ops.stop_gradient(counts))
    return ops.maximum(counts, 1.0) / replicas
