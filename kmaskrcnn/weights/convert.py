"""Files of other Mask R-CNN programs -> a kmaskrcnn model, and its folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kmaskrcnn import __version__, model_folder
from kmaskrcnn.backbones import pixel_statistics
from kmaskrcnn.backbones.imagenet import IMAGENET, IMAGENET_V2
from kmaskrcnn.config import Config
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.weight_files import hub
from kmaskrcnn.weight_files.budget import Budget
from kmaskrcnn.weight_files.download import cache_folder, locked, sha256_of
from kmaskrcnn.weight_files.reader import read_tensors
from kmaskrcnn.weights import detectron2, matterport, torchvision
from kmaskrcnn.weights.architectures import check_architecture
from kmaskrcnn.weights.coco_labels import labels_for
from kmaskrcnn.weights.detectron2_config import read_source_config
from kmaskrcnn.weights.presets import PRESETS, SHIPPED, find_file, find_preset, preset_names, shipped_folder
from kmaskrcnn.weights.transfer import LoadReport


class Importer(NamedTuple):
    """One format: path -> settings, (model, path, ...) -> report, and what belongs to it."""

    settings: Callable[..., dict[str, Any]]
    load: Callable[..., LoadReport]
    options: tuple[str, ...] = ()
    input_settings: Mapping[str, int | str] = {}
    differences: tuple[str, ...] = ()


class Imported(NamedTuple):
    """A model with what belongs to it, and what became of the file's tensors."""

    model: MaskRCNN
    config: Config
    labels: Labels
    report: LoadReport
    differences: tuple[str, ...]
    assumptions: tuple[str, ...]


IMPORTERS = {
    "torchvision": Importer(
        torchvision.torchvision_settings,
        torchvision.load_torchvision,
        ("norm_epsilon",),
        input_settings={"resize_method": "torchvision"},
    ),
    "detectron2": Importer(
        detectron2.detectron2_settings,
        detectron2.load_detectron2,
        ("rgb",),
        input_settings={"resize_method": "detectron2"},
        differences=detectron2.DIFFERENCES,
    ),
    "matterport": Importer(
        matterport.matterport_settings,
        matterport.load_matterport,
        input_settings=matterport.MATTERPORT_INPUT,
        differences=matterport.DIFFERENCES,
    ),
}


def detect_format(path: str | os.PathLike) -> str:
    """The importer of a file, by its content; raises WeightsError where it is none of theirs."""
    Budget(path)  # raises where it is no file
    try:
        with open(path, "rb") as stream:
            is_hdf5 = stream.read(4) == b"\x89HDF"
    except OSError as error:
        raise WeightsError(f"{os.fspath(path)}: {error.strerror or error}") from None
    if is_hdf5:
        return "matterport"
    names = read_tensors(path)
    for prefix, name in (("backbone.body.", "torchvision"), ("backbone.bottom_up.", "detectron2")):
        if any(tensor.startswith(prefix) for tensor in names):
            return name
    check_architecture(names, os.fspath(path))
    raise WeightsError(
        f"{os.fspath(path)}: holds no Mask R-CNN of torchvision, Detectron2 or matterport, the first tensor is "
        f"{next(iter(names))}; give the weights of a backbone alone to training, as init_weights"
    )


def import_file(
    source: str | os.PathLike,
    file_format: str = "auto",
    class_names: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    source_config: str | os.PathLike = "",
    fresh_masks: bool = False,
    **settings: Any,
) -> Imported:
    """Convert a checkpoint of another framework into a model.

    Args:
        source: the file, or the name of a preset.
        file_format: "torchvision", "detectron2", "matterport" or "auto".
        class_names: names of the classes 1..C; default: COCO's for 80 and 90 classes.
        options: arguments of the format's load function: norm_epsilon for torchvision, rgb for detectron2.
        source_config: the config.yaml that Detectron2 wrote beside the file.
        fresh_masks: the file holds a Faster R-CNN, which gets a new mask head.
        **settings: replace those inferred from the file. With another num_classes everything but the last layers is
            loaded.

    Raises:
        WeightsError, ConfigError: no such file, one that does not fit or can be read in two ways, or impossible
            settings.
    """
    path = find_file(source)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a weight file")
    file_format = detect_format(path) if file_format == "auto" else file_format
    importer, preset = IMPORTERS[file_format], find_preset(path)
    if file_format != "detectron2" and source_config:
        raise WeightsError(f"{path}: source_config is for files of detectron2, this is one of {file_format}")
    if file_format == "matterport" and fresh_masks:
        raise WeightsError(f"{path}: fresh_masks is for files of torchvision and detectron2")
    fresh = {"fresh_masks": True} if fresh_masks else {}
    told = {**importer.input_settings, **importer.settings(path, **fresh)}
    loading: dict[str, Any] = {"new_classes": "num_classes" in settings, **fresh, **(options or {})}
    for name in options or ():
        if name not in importer.options:
            raise WeightsError(f"{path}: {name} is not an option for files of {file_format}")
    if preset is not None:
        told |= preset.settings
        loading = {**preset.options, **loading}
    from_config: dict[str, Any] = {}
    if source_config:
        described = read_source_config(source_config, fresh_masks)
        from_config = described.settings
        if described.sampling_ratio:
            from_config["roi_sampling_ratio"] = described.sampling_ratio
        loading = {"rgb": described.rgb, **loading}
    elif file_format == "detectron2" and preset is None:
        _refuse_guesses(path, {*settings, *loading})
    told |= from_config
    config = Config().replace(**{"dtype": "float32", **told, **settings})
    labels = labels_for(config.model.num_classes, class_names)
    model = model_folder.build_model(config)
    report = importer.load(model, path, **loading)
    known = preset.settings if preset is not None else from_config
    assumptions = _assumptions(file_format, config, known, settings, loading)
    return Imported(model, config, labels, report, importer.differences, assumptions)


def _refuse_guesses(path: Path, chosen: Container[str]) -> None:
    if unknown := detectron2.open_questions(path, chosen):
        names = ", ".join(unknown)
        raise WeightsError(
            f"{path}: Detectron2 has models of both kinds, and the file does not say which this is: give "
            f"source_config=config.yaml (from the folder that training wrote), or {names}"
        )


# What no tensor tells, and what a model answers differently by.
_UNTOLD = (
    "image_mean image_std backbone_stride_in_1x1 anchor_sizes anchor_aspect_ratios roi_sampling_ratio roi_aligned "
    "score_threshold nms_iou max_detections rpn_pre_nms_top_k rpn_post_nms_top_k rpn_nms_iou min_size max_size"
).split()


def _assumptions(
    file_format: str, config: Config, known: Mapping[str, Any], given: Mapping[str, Any], loading: Mapping[str, Any]
) -> tuple[str, ...]:
    """A line for each setting that the weights do not tell, with where it is from."""
    values = {**dataclasses.asdict(config.data), **dataclasses.asdict(config.model)}
    mean, std = pixel_statistics(config.model.backbone)
    values |= {"image_mean": values["image_mean"] or mean, "image_std": values["image_std"] or std}
    lines = []
    for name in (*_UNTOLD, *(("cascade_ious",) if config.model.cascade_ious else ())):
        origin = "given" if name in given else "known of this file" if name in known else f"usual for {file_format}"
        value = values[name]
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        lines.append(f"{name}={text} ({origin})")
    if file_format == "detectron2":
        order = "RGB" if loading.get("rgb") else "BGR, unless its pixel_mean is of RGB"
        lines.append(f"pixels there: {order}")
    if config.model.backbone == "mobilenet_v2":
        lines.append("the pyramid stands on the blocks 3, 6, 13 and 17 of mobilenet_v2's features (usual here)")
    return tuple(lines)


def write_folder(imported: Imported, directory: str | os.PathLike) -> Path:
    """Write a model folder like that of training, which `Predictor.from_directory` and `init_weights` open.

    Raises:
        TrainingError: it cannot be written, or holds another model.
        WeightsError: it already holds this model, whose weights may have been trained since.
    """
    path = model_folder.open_directory(directory, imported.config, imported.labels)
    if (path / "config.json").exists():
        raise WeightsError(f"{path}: already holds a model; choose another folder, or move it away")
    model_folder.write_settings(path, imported.config, imported.labels)
    model_folder.save_weights(imported.model, path / model_folder.BEST)
    return path


def converted_folder(name: str, mirror: str | None = None, offline: bool | None = None) -> Path:
    """The model folder of a preset or of hf://OWNER/NAME: downloaded and converted the first time, then kept.

    Args:
        name: in `PRESETS` or `SHIPPED` of `kmaskrcnn.weights.presets`, or hf://OWNER/NAME.
        mirror, offline: as for `kmaskrcnn.weight_files.download.fetch`.

    Raises:
        WeightsError: no such name, or it cannot be downloaded.
    """
    if hub.is_address(name):
        return hub.pull(name, offline=offline)
    if name in SHIPPED:
        return shipped_folder(name)
    if name not in PRESETS:
        raise WeightsError(f"{name}: no such preset; presets are {', '.join(preset_names())}, or hf://OWNER/NAME")
    path = find_file(name, mirror, offline)
    # Another version may convert otherwise.
    folder = cache_folder() / "kmaskrcnn" / f"{name}-{sha256_of(path)[:12]}-{__version__}"
    if folder.is_dir():  # whole, since it gets its name last; the cache may be read-only
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):  # of eight workers one converts
        if not folder.is_dir():
            print(f"converting {path} to {folder}", flush=True)
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            write_folder(import_file(path), part)
            os.replace(part, folder)
    return folder


def starting_weights(source: str) -> str:
    """What `init_weights` names, with a preset or hf://OWNER/NAME as the folder that it was converted to.

    Raises:
        WeightsError: neither a preset nor a path, or one that cannot be downloaded.
    """
    if os.path.exists(source) or source in (IMAGENET, IMAGENET_V2):
        return source
    if source in preset_names() or hub.is_address(source):
        return str(converted_folder(source))
    raise WeightsError(
        f"init_weights={source}: no such file, folder or preset; presets are {IMAGENET}, {IMAGENET_V2}, "
        f"{', '.join(preset_names())}"
    )


def open_model(
    name_or_path: str | os.PathLike, mirror: str | None = None, offline: bool | None = None, **settings: Any
) -> MaskRCNN:
    """The model of a preset, of a file of another program, or of a kmaskrcnn folder or .weights.h5 file.

    Raises:
        WeightsError, ConfigError: there is none, or it does not fit the settings.
    """
    text = os.fspath(name_or_path)
    # With other classes a published file is imported anew, which says what it leaves out.
    if hub.is_address(text) or (text in PRESETS and not os.path.exists(text) and "num_classes" not in settings):
        path = converted_folder(text, mirror, offline)
    else:
        path = find_file(text, mirror, offline)
    if not path.is_dir() and not path.name.endswith(model_folder.WEIGHTS_SUFFIX):
        return import_file(path, **settings).model
    config = model_folder.read_config(path if path.is_dir() else path.parent)
    if settings.get("num_classes", config.model.num_classes) == config.model.num_classes:
        return model_folder.load_model(path, **settings)[0]
    model = model_folder.build_model(config.replace(**settings))
    print(model_folder.load_initial_weights(model, str(path)), flush=True)
    return model
