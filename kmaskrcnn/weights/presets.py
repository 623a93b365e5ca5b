"""Published Mask R-CNN weights: where they are, what they scored, and how a file of theirs is opened; and our own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.download import Published, fetch, sha256_of


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published file.

    Attributes:
        url: where to download it.
        checksum: the part of a checksum that its name carries; empty if none.
        box_ap, mask_ap: published AP on COCO val2017, in percent.
        format: "torchvision", "detectron2" or "matterport".
        settings: what its tensors do not tell, in place of what would be taken for granted.
        options: arguments of the importer's load function.
    """

    url: str
    checksum: str
    box_ap: float
    mask_ap: float
    format: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def published(self) -> Published:
        """What to download. Of Detectron2's names it is not published what they are a checksum of."""
        return Published(self.url, self.checksum if self.format == "torchvision" else "")

    @property
    def filename(self) -> str:
        """The file's own name."""
        return self.published.name


_TORCHVISION = "https://download.pytorch.org/models"
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2"
# Trained with batch normalization, which hides what the backbone expects, at 1024 pixels.
_LSJ = {"backbone_stride_in_1x1": True, "image_std": (1.0, 1.0, 1.0), "min_size": 1024, "max_size": 1024}


def _zoo(path: str, box_ap: float, mask_ap: float, settings: Mapping[str, Any] | None = None) -> Preset:
    checksum = path.removesuffix(".pkl")[-6:]
    return Preset(f"{_DETECTRON2}/{path}", checksum, box_ap, mask_ap, "detectron2", settings or {})


PRESETS = {
    "torchvision_r50_fpn": Preset(
        f"{_TORCHVISION}/maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
        "bf2d0c1e",
        37.9,
        34.6,
        "torchvision",
        options={"norm_epsilon": 0.0},
    ),
    "torchvision_r50_fpn_v2": Preset(
        f"{_TORCHVISION}/maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", "73cbd019", 47.4, 41.8, "torchvision"
    ),
    "detectron2_r50_fpn_1x": _zoo(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504.pkl", 38.6, 35.2
    ),
    "detectron2_r50_fpn_3x": _zoo(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl", 41.0, 37.2
    ),
    "detectron2_r101_fpn_3x": _zoo(
        "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl", 42.9, 38.6
    ),
    "detectron2_r50_fpn_lsj_100": _zoo(
        "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ/42047764/model_final_bb69de.pkl", 44.6, 40.3, _LSJ
    ),
    "detectron2_r50_fpn_lsj_200": _zoo(
        "new_baselines/mask_rcnn_R_50_FPN_200ep_LSJ/42047638/model_final_89a8d3.pkl", 46.3, 41.7, _LSJ
    ),
    "detectron2_r50_fpn_lsj_400": _zoo(
        "new_baselines/mask_rcnn_R_50_FPN_400ep_LSJ/42019571/model_final_14d201.pkl", 47.4, 42.5, _LSJ
    ),
    "matterport_r101_fpn": Preset(
        "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5", "", 34.7, 29.6, "matterport"
    ),
}


# Our own models, which the package holds as model folders with a README each.
SHIPPED = ("nuclei_mobilenet_v2",)
# Of all published ones the best whose file can be checked: its name carries its SHA-256.
DEFAULT_PRESET = "torchvision_r50_fpn_v2"


def preset_names() -> list[str]:
    """The names of all presets, published and shipped."""
    return [*PRESETS, *SHIPPED]


def shipped_folder(name: str) -> Path:
    """The model folder of a name in SHIPPED."""
    return Path(__file__).parents[1] / "models" / name


def find_preset(path: str | os.PathLike) -> Preset | None:
    """The preset whose file this is, by its name and, where torchvision's name carries it, its SHA-256.

    Raises:
        WeightsError: the file has the name but not the checksum.
    """
    preset = next((p for p in PRESETS.values() if p.filename == Path(path).name), None)
    if preset is not None and preset.published.sha256:
        digest = sha256_of(Path(path))
        if not digest.startswith(preset.checksum):
            raise WeightsError(
                f"{path}: its SHA-256 begins with {digest[:8]}, its name says {preset.checksum}: "
                f"download it again from {preset.url}, or rename it if it is another file"
            )
    return preset


def find_file(name_or_path: str | os.PathLike, mirror: str | None = None, offline: bool | None = None) -> Path:
    """The local file or folder of a path, or of a preset, which is downloaded the first time.

    The file of a preset is looked for, under its own name, in the working folder and in Keras' folder of models
    (KERAS_HOME/models, ~/.keras/models), where a download goes to.

    Args:
        name_or_path: a name in PRESETS or SHIPPED, or a path.
        mirror, offline: as for `kmaskrcnn.weight_files.download.fetch`.

    Raises:
        WeightsError: there is none, or it cannot be downloaded; with the names of the presets, or the address and
            where to put the file.
    """
    text = os.fspath(name_or_path)
    if os.path.exists(text):
        return Path(text)
    if text in SHIPPED:
        return shipped_folder(text)
    if text not in PRESETS:
        raise WeightsError(f"{text}: no such file, folder or preset; presets are {', '.join(preset_names())}")
    here = Path(PRESETS[text].filename)
    return here if here.is_file() else fetch(PRESETS[text].published, mirror, offline)
