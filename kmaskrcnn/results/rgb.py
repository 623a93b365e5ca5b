"""The one rule by which an opened image file becomes RGB. Needs Pillow alone."""

from __future__ import annotations

import numpy as np
from PIL import Image

_WHITE_IS_ZERO, _PHOTOMETRIC = 0, 262


class PixelError(ValueError):
    """Pixels of which is not known how bright they are."""


def to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of an open image, as stored.

    Gray and palette are spread to RGB, alpha is left out, 16 bits keep the high byte, of an animation the first frame
    is taken. 32-bit integers must hold 16-bit values and floats lie in 0..1.

    Raises:
        PixelError: they do not, or Pillow does not convert the mode.
    """
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        gray = ((65535 - values if _is_inverted(image) else values) >> 8).astype(np.uint8)
    elif image.mode == "I":
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535 or 0 < high < 256:
            raise PixelError(f"32-bit integers of {low}..{high}, no 16-bit values: store 8 bits")
        gray = ((65535 - values if _is_inverted(image) else values) >> 8).astype(np.uint8)
    elif image.mode == "F":
        values = np.asarray(image)
        least, most = float(values.min()), float(values.max())
        if not (least >= 0 and most <= 1):
            raise PixelError(f"floating-point pixels of {least:g}..{most:g}, not 0..1: store 8 bits")
        gray = np.rint((1 - values if _is_inverted(image) else values) * 255).astype(np.uint8)
    else:
        try:
            return np.asarray(image.convert("RGB"))
        except ValueError as error:
            image.load()  # a damaged file is named as one
            raise PixelError(f"pixels of mode {image.mode} ({error})") from None
    return np.repeat(gray[..., None], 3, axis=2)


def _is_inverted(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
