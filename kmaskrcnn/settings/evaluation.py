"""Settings of the evaluation and of prediction."""

from __future__ import annotations

import dataclasses

from kmaskrcnn.settings.field import POSITIVE, setting


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """COCO evaluation, and how images are predicted, there and by `Predictor`."""

    eval_batch_size: int = setting(1, "Images per batch in evaluation and prediction.", **POSITIVE)
    eval_max_images: int = setting(
        0, "Evaluate on this many images, the first ones; 0: all. `kmaskrcnn evaluate` takes all unless told so.", low=0
    )
    eval_max_detections: int = setting(
        0,
        "Detections per image that COCO evaluation counts; 0: 100, or as many as the fullest image has objects if that "
        "is more.",
        low=0,
    )
    eval_overlays: int = setting(4, "Images drawn with their predictions after each evaluation.", low=0)
    tile_size: int = setting(
        0, "Predict images that are larger than this in square tiles of this side, in pixels; 0: no tiles.", low=0
    )
    tile_overlap: int = setting(
        128, "Least overlap of neighboring tiles in pixels; best a little more than an object is long.", low=0
    )
    tta_flip: bool = setting(False, "Test-time augmentation (TTA): also predict the mirrored image.")
    tta_rotate90: bool = setting(
        False,
        "Test-time augmentation (TTA): also predict the three quarter turns of the image; with tta_flip all eight.",
    )
    tta_scales: tuple[float, ...] = setting(
        (),
        "Test-time augmentation (TTA): predict at these scale factors, of which 1 is the usual size, e.g. 0.8,1,1.25; "
        "empty: at 1 alone.",
        **POSITIVE,
    )

    @property
    def augmented(self) -> bool:
        """Whether test-time augmentation is on."""
        return self.tta_flip or self.tta_rotate90 or bool(self.tta_scales)
