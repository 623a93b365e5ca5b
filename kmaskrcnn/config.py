"""The groups of settings as one frozen tree: settings by name, what may stand beside what, and config.json."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import operator
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from kmaskrcnn import __version__
from kmaskrcnn.errors import ConfigError, UnknownSetting
from kmaskrcnn.settings import DataConfig, EvalConfig, ModelConfig, TrainConfig

__all__ = [
    "Config",
    "ConfigError",
    "DataConfig",
    "EvalConfig",
    "ModelConfig",
    "TrainConfig",
    "UnknownSetting",
    "fields",
    "groups",
    "near_match",
    "validate",
]

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole tree."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluation: EvalConfig = dataclasses.field(default_factory=EvalConfig)

    def replace(self, **settings: Any) -> Config:
        """A copy with settings of any group replaced by name; raises ConfigError on an unknown name."""
        groups = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        owner = {f.name: group for group, value in groups.items() for f in dataclasses.fields(value)}
        changes: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for name, value in settings.items():
            if name not in owner:
                raise UnknownSetting(f"unknown setting {name!r}{near_match(name, owner)}")
            changes[owner[name]][name] = value
        config = Config(**{g: dataclasses.replace(v, **changes[g]) for g, v in groups.items()})
        validate(config)
        return config

    def to_json(self) -> str:
        """The tree as JSON text: the version of kmaskrcnn that writes it, then the groups as objects."""
        return json.dumps({"version": __version__, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote, of this version or another one.

        Settings that an older version did not have keep their defaults, with which a model works as it did. What a
        newer version wrote and this one does not know is left out where it is off (0, False, empty or "none") or is no
        setting of the network; the log says so.

        Raises:
            ConfigError: text that is not it, an impossible setting, or a network that needs a newer kmaskrcnn.
        """
        try:
            tree = json.loads(text)
            version = str(tree.pop("version", "0"))
            groups: dict[str, dict[str, Any]] = {name: dict(group) for name, group in tree.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a kmaskrcnn config.json: {error}") from None
        known, newer = fields(), _numbers(version) > _numbers(__version__)
        settings = {}
        for group, members in groups.items():
            for name, value in members.items():
                name = _RENAMED.get(name, name)
                if name in known or not newer:
                    settings[name] = tuple(value) if isinstance(value, list) else value
                elif group == "model" and value not in (0, "", [], None, "none"):
                    raise ConfigError(
                        f"{name}={value!r} needs kmaskrcnn {version}, which wrote this config.json; "
                        f"this is {__version__}: install the newer one"
                    )
                else:
                    _log.warning("config.json of kmaskrcnn %s: %s=%r is unknown here and ignored", version, name, value)
        return cls().replace(**settings)


# What settings were called in folders of before the first release.
_RENAMED = {"eval_pictures": "eval_overlays"}


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers of a version such as 1.2.0.dev3, to compare it by."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def near_match(name: str, known: Iterable[str]) -> str:
    """What to add to a message about an unknown name: "; did you mean ...?", or nothing where none is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def fields() -> dict[str, tuple[dataclasses.Field, type, bool]]:
    """Every setting by name: (dataclass field, scalar type, whether it is a tuple of that type)."""
    result = {}
    for group in dataclasses.fields(Config):
        group_type = typing.get_type_hints(Config)[group.name]
        hints = typing.get_type_hints(group_type)
        for field in dataclasses.fields(group_type):
            hint = hints[field.name]
            is_tuple = typing.get_origin(hint) is tuple
            assert not isinstance(hint, types.UnionType), field.name
            result[field.name] = (field, typing.get_args(hint)[0] if is_tuple else hint, is_tuple)
    return result


def groups() -> dict[str, list[str]]:
    """The names of the settings by group: model, data, train, evaluation."""
    types_of = typing.get_type_hints(Config)
    return {g.name: [f.name for f in dataclasses.fields(types_of[g.name])] for g in dataclasses.fields(Config)}


_BOUNDS = {"above": operator.gt, "low": operator.ge, "below": operator.lt, "high": operator.le}
_BOUND_WORDS = {"above": "above", "low": "at least", "below": "below", "high": "at most"}


def _out_of_range(value: Any, allowed: Mapping[str, Any]) -> str:
    """What a value breaks of the metadata that `setting` laid beside it; empty where it fits."""
    if allowed["choices"]:
        return "" if value in allowed["choices"] else f"choose one of {', '.join(allowed['choices'])}"
    many, lengths = isinstance(value, tuple), allowed["lengths"]
    if lengths and len(value) not in lengths:
        return f"needs {max(lengths)} numbers" + (" or none" if 0 in lengths else "")
    bounds = [(bound, holds) for name, holds in _BOUNDS.items() if (bound := allowed[name]) is not None]
    if all(holds(number, bound) for number in (value if many else (value,)) for bound, holds in bounds):
        return ""
    whose = "every number must" if many else "must"
    if None not in (allowed["low"], allowed["high"]):
        return f"{whose} lie in {allowed['low']:g}..{allowed['high']:g}"
    words = [f"{_BOUND_WORDS[name]} {allowed[name]:g}" for name in _BOUNDS if allowed[name] is not None]
    return f"{whose} be {' and '.join(words)}"


def validate(config: Config) -> None:
    """Check types, ranges and settings that exclude each other; raises ConfigError naming the setting."""
    values = {}
    for group in dataclasses.fields(config):
        values |= dataclasses.asdict(getattr(config, group.name))
    for name, (field, scalar, is_tuple) in fields().items():
        value = values[name]
        if is_tuple != isinstance(value, tuple):
            raise ConfigError(f"{name}={value!r}: expected {'a tuple' if is_tuple else 'one value'}")
        for item in value if is_tuple else (value,):
            number = scalar is float and isinstance(item, int) and not isinstance(item, bool)
            if not number and type(item) is not scalar:
                raise ConfigError(f"{name}={value!r}: expected {scalar.__name__}")
        problem = _out_of_range(value, field.metadata)
        if problem:
            raise ConfigError(f"{name}={value!r}: {problem}")

    def require(condition: bool, name: str, why: str) -> None:
        if not condition:
            raise ConfigError(f"{name}={values[name]!r}: {why}")

    require(len(values["anchor_aspect_ratios"]) > 0, "anchor_aspect_ratios", "needs at least one ratio")
    require(
        values["rpn_negative_iou"] <= values["rpn_positive_iou"], "rpn_negative_iou", "must not exceed rpn_positive_iou"
    )
    cascade = list(values["cascade_ious"])
    require(len(cascade) != 1, "cascade_ious", "a cascade has at least two box heads")
    require(cascade == sorted(cascade), "cascade_ious", "must be in increasing order")
    why = "the first must be roi_positive_iou, by which RoIs are sampled"
    require(not cascade or cascade[0] == values["roi_positive_iou"], "cascade_ious", why)
    if values["mask_point_rend"]:
        require(
            not values["mask_scoring"], "mask_scoring", "not with mask_point_rend, which pools nothing that it reads"
        )
        require(values["mask_pool_size"] % 2 == 0, "mask_pool_size", "must be even with mask_point_rend")
    for name in ("mask_fc_channels", "mask_point_channels", "mask_subdivisions"):
        plain = getattr(ModelConfig, name)
        require(values["mask_point_rend"] or values[name] == plain, name, "only PointRend has it: give mask_point_rend")
    jitter = values["scale_jitter"]
    require(not jitter or jitter[0] <= jitter[1], "scale_jitter", "the smaller factor must come first")
    require(values["crop_size"] % 32 == 0, "crop_size", "must be a multiple of 32 (the stride of C5)")
    for name in ("scale_jitter", "rotate90"):
        # Without a crop the padded size of an image would depend on the draw, and graphs be traced without end.
        require(not values[name] or values["crop_size"] > 0, name, "needs crop_size")
    require(not values["crop_probability"] or not values["crop_size"], "crop_probability", "not with crop_size")
    require(values["min_size"] <= values["max_size"], "min_size", "must not exceed max_size")
    tile, overlap = values["tile_size"], values["tile_overlap"]
    require(tile == 0 or tile >= 32, "tile_size", "must be 0 or at least 32")
    require(not tile or overlap <= tile // 2, "tile_overlap", "must lie in 0..tile_size / 2")
    loggers = {"tensorboard", "wandb", "mlflow"}
    require(set(values["logger"]) <= loggers, "logger", f"choose from {', '.join(sorted(loggers))}")
    require(not values["patience"] or values["eval_every"] > 0, "patience", "needs eval_every")
    profile = values["profile_steps"]
    require(not profile or 0 <= profile[0] <= profile[1], "profile_steps", "needs the first step, then the last")
    require(list(values["drop_at"]) == sorted(values["drop_at"]), "drop_at", "must be in increasing order")
