"""Overlays of masks, boxes and names on pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kmaskrcnn.ops.mask_paste import paste_window

_MASK_OPACITY = 0.45
# Pictures are drawn with at least this long side, so that labels on small ones can be read.
_LEAST_SIDE = 512


def instance_color(index: int) -> tuple[int, int, int]:
    """The RGB colour of the instance at `index`; neighbours in the order differ as much as can be."""
    hue = (0.02 + index * 0.618034) % 1.0  # steps of the golden ratio never come close to each other soon
    saturation, value = (0.95, 1.0) if index % 2 == 0 else (0.75, 0.9)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def draw_instances(
    image: np.ndarray, boxes: np.ndarray, masks: np.ndarray, captions: Sequence[str] | None = None
) -> Image.Image:
    """Draw instances on a picture.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) yxyx pixels, the best first: it is drawn last.
        masks: (N, M, M) probabilities over each box.
        captions: N lines of text; default: none. They are left out where there are too many to read.

    Returns:
        The picture, enlarged by a whole factor where it is small.
    """
    factor = max(1, -(-_LEAST_SIDE // max(image.shape[:2])))
    canvas = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1).astype(np.float32)
    height, width = canvas.shape[:2]
    line = max(1, round(max(height, width) / 600))
    scaled = np.asarray(boxes, np.float32).reshape(-1, 4) * factor
    for index in reversed(range(len(scaled))):
        window, top, left = paste_window(masks[index], scaled[index], height, width)
        if not window.size:
            continue
        part = canvas[top : top + window.shape[0], left : left + window.shape[1]]
        color = np.array(instance_color(index), np.float32)
        part[window] = (1 - _MASK_OPACITY) * part[window] + _MASK_OPACITY * color
        part[_contour(window, line)] = color
    picture = Image.fromarray(np.clip(np.round(canvas), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    size = max(11, round(max(height, width) / 55))
    font = ImageFont.load_default(size=size)
    legible = len(scaled) * size * size * 4 < height * width
    for index in reversed(range(len(scaled))):
        y0, x0, y1, x1 = (float(v) for v in scaled[index])
        if y1 - y0 < 1 or x1 - x0 < 1:
            continue
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=instance_color(index), width=line)
    if captions and legible:
        for index in reversed(range(len(scaled))):
            _label(draw, captions[index], scaled[index], instance_color(index), font, picture.size)
    return picture


def _contour(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that lie within `width` of its border."""
    inner = np.pad(mask, width)
    for _ in range(width):
        kept = inner.copy()
        kept[1:] &= inner[:-1]
        kept[:-1] &= inner[1:]
        kept[:, 1:] &= inner[:, :-1]
        kept[:, :-1] &= inner[:, 1:]
        inner = kept
    return mask & ~inner[width:-width, width:-width]


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: np.ndarray,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    # Above the box, or inside it where there is no room above, and always whole.
    x = min(max(float(box[1]), 0), max(size[0] - width, 0))
    y = float(box[0]) - height if box[0] >= height else float(box[0])
    y = min(max(y, 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
    draw.text((x + 3 - left, y + 2 - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
