"""Files of other Mask R-CNN programs -> a kmaskrcnn model, and its folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kmaskrcnn import model_folder
from kmaskrcnn.config import Config
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.weight_files.budget import Budget
from kmaskrcnn.weight_files.reader import read_tensors
from kmaskrcnn.weights import detectron2, matterport, torchvision
from kmaskrcnn.weights.coco_labels import labels_for
from kmaskrcnn.weights.presets import find_file, find_preset
from kmaskrcnn.weights.transfer import LoadReport


class Importer(NamedTuple):
    """One format: path -> settings, (model, path, ...) -> report, and what belongs to it."""

    settings: Callable[[str | os.PathLike], dict[str, Any]]
    load: Callable[..., LoadReport]
    options: tuple[str, ...] = ()
    pictures: Mapping[str, int] = {}
    differences: tuple[str, ...] = ()


class Imported(NamedTuple):
    """A model with what belongs to it, and what became of the file's tensors."""

    model: MaskRCNN
    config: Config
    labels: Labels
    report: LoadReport
    differences: tuple[str, ...]


IMPORTERS = {
    "torchvision": Importer(torchvision.torchvision_settings, torchvision.load_torchvision, ("norm_epsilon",)),
    "detectron2": Importer(
        detectron2.detectron2_settings, detectron2.load_detectron2, ("rgb",), differences=detectron2.DIFFERENCES
    ),
    "matterport": Importer(
        matterport.matterport_settings,
        matterport.load_matterport,
        pictures=matterport.MATTERPORT_PICTURES,
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
    raise WeightsError(
        f"{os.fspath(path)}: holds no Mask R-CNN of torchvision, Detectron2 or matterport, the first tensor is "
        f"{next(iter(names))}; the weights of a backbone alone go to --init_weights of train.py"
    )


def import_file(
    source: str | os.PathLike,
    file_format: str = "auto",
    class_names: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Imported:
    """Read a file of another program into a model of ours.

    Args:
        source: the file, or the name of a preset of which there is a file.
        file_format: "torchvision", "detectron2", "matterport" or "auto".
        class_names: of the classes 1..C; default: COCO's for 80 and 90 classes.
        options: arguments of the format's load function: norm_epsilon for torchvision, rgb for detectron2.
        **settings: replace those told from the file. A num_classes that differs from the file's asks for everything
            but the last layers.

    Raises:
        WeightsError, ConfigError: no such file, one that does not fit, or impossible settings.
    """
    path = find_file(source)
    if path.is_dir():
        raise WeightsError(f"{path}: is a folder, not a file of weights")
    file_format = detect_format(path) if file_format == "auto" else file_format
    importer, preset = IMPORTERS[file_format], find_preset(path)
    told = {**importer.pictures, **importer.settings(path)}
    loading: dict[str, Any] = {"new_classes": "num_classes" in settings, **(options or {})}
    for name in options or ():
        if name not in importer.options:
            raise WeightsError(f"{path}: {name} is no option for files of {file_format}")
    if preset is not None:
        told |= preset.settings
        loading = {**preset.options, **loading}
    config = Config().replace(**{**told, **settings})
    labels = labels_for(config.model.num_classes, class_names)
    model = model_folder.build_model(config)
    report = importer.load(model, path, **loading)
    return Imported(model, config, labels, report, importer.differences)


def write_folder(imported: Imported, directory: str | os.PathLike) -> Path:
    """Write a model folder as training does, which `Predictor.from_directory` and --init_weights open.

    Raises:
        TrainingError: it cannot be written, or holds another model.
    """
    path = model_folder.prepare_directory(directory, imported.config, imported.labels)
    model_folder.save_weights(imported.model, path / model_folder.BEST)
    return path


def open_model(name_or_path: str | os.PathLike, **settings: Any) -> MaskRCNN:
    """The model of a preset, of a file of another program, or of a kmaskrcnn folder or .weights.h5 file.

    Raises:
        WeightsError, ConfigError: there is none, or it does not fit the settings.
    """
    path = find_file(name_or_path)
    if path.is_dir() or path.name.endswith(model_folder.WEIGHTS_SUFFIX):
        return model_folder.load_model(path, **settings)[0]
    return import_file(path, **settings).model
