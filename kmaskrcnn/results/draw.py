"""Overlays of masks, boxes and names on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from .fonts import caption_font
from .mask_paste import paste_window
from .pasted_masks import PastedMasks, Window

_MASK_OPACITY = 0.4
# Images are drawn with at least this long side, so that labels on small ones can be read.
_LEAST_SIDE = 640
# Each as far as can be in OKLab from those before it, among colors that are neither pale nor dark.
_COLORS = (
    "#f04b2d #2d78ff #5aff87 #ff87ff #78780f #00e1ff #ffe100 #785aa5 #c31e78 #ffb478 "
    "#0078a5 #00b487 #e187a5 #96b4ff #a569ff #a55a2d #b4e196 #00a500 #a53cb4 #a5d200"
).split()


def instance_color(index: int) -> tuple[int, int, int]:
    """The RGB color of the instance at `index`; neighbors in the order differ as much as can be."""
    red, green, blue = ImageColor.getrgb(_COLORS[index % len(_COLORS)])[:3]
    return red, green, blue


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    masks: np.ndarray | PastedMasks,
    captions: Sequence[str] | None = None,
    colors: Sequence[tuple[int, int, int]] | None = None,
    font: str = "",
) -> Image.Image:
    """Draw instances on an image.

    Args:
        image: (H, W, 3) uint8.
        boxes: (N, 4) yxyx pixels, the best first: it is drawn last.
        masks: (N, M, M) probabilities over each box, or masks at the size of the image.
        captions: N lines of text; default: none. A caption is left out if its object is too small for it, or if those
            of better objects leave no room.
        colors: N RGB colors; default: `instance_color`.
        font: font file for the captions; empty: an installed font that has their characters.

    Returns:
        The image; a small one is enlarged by a whole factor.
    """
    factor = max(1, -(-_LEAST_SIDE // max(image.shape[:2])))
    height, width = (side * factor for side in image.shape[:2])
    canvas = image.copy()
    if factor > 1:
        canvas = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)).copy()
    line = max(2, round(max(height, width) / 500))
    scaled = np.asarray(boxes, np.float32).reshape(-1, 4) * factor
    colors = [instance_color(i) for i in range(len(scaled))] if colors is None else colors
    for index in reversed(range(len(scaled))):
        window, top, left = _window(masks, index, scaled[index], factor, height, width)
        if not window.size:
            continue
        part = canvas[top : top + window.shape[0], left : left + window.shape[1]]
        for channel, value in enumerate(colors[index]):  # one at a time by a table, for memory on large images
            table = np.round((1 - _MASK_OPACITY) * np.arange(256) + _MASK_OPACITY * value).astype(np.uint8)
            np.copyto(part[..., channel], table[part[..., channel]], where=window)
        part[_contour(window, line)] = colors[index]
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    size = max(13, round(max(height, width) / 50))
    if len(scaled) * size * size * 6 < height * width:  # among more objects boxes hide more than they show
        for (y0, x0, y1, x1), color in zip(scaled[::-1].tolist(), colors[::-1], strict=True):
            if y1 - y0 >= 1 and x1 - x0 >= 1:
                draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color, width=max(1, line // 2))
    if captions:
        _draw_captions(draw, captions, scaled, colors, size, picture.size, font)
    return picture


def _window(
    masks: np.ndarray | PastedMasks, index: int, box: np.ndarray, factor: int, height: int, width: int
) -> Window:
    """One mask on the enlarged canvas."""
    if isinstance(masks, PastedMasks):
        window, top, left = masks.window(index)
        return window.repeat(factor, axis=0).repeat(factor, axis=1), top * factor, left * factor
    return paste_window(masks[index], box, height, width)


def _contour(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that lie within `width` rows and columns of its border."""
    inner = np.pad(mask, width)
    for _ in range(2):  # rows, then columns
        span, length = 1, 2 * width + 1
        while span < length:  # a pixel stands for `span` ones that are all set
            step = min(span, length - span)
            inner = inner[:-step] & inner[step:]
            span += step
        inner = inner.T
    return mask & ~inner


def _draw_captions(
    draw: ImageDraw.ImageDraw,
    captions: Sequence[str],
    boxes: np.ndarray,
    colors: Sequence[tuple[int, int, int]],
    size: int,
    canvas: tuple[int, int],
    font_file: str,
) -> None:
    """Captions of the best objects first, each in the first place about its box where no other one is."""
    pad = max(2, size // 5)
    placed = np.zeros((0, 4))
    for caption, (y0, x0, y1, x1), color in zip(captions, boxes.tolist(), colors, strict=True):
        if not caption:
            continue
        font, caption = caption_font(caption, size, font_file)
        left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        if y1 - y0 < 1 or x1 - x0 < 1 or width > 2.5 * (x1 - x0) or height > y1 - y0:
            continue
        for x, y in ((x0, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height), (x1 - width, y0 - height), (x1, y0)):
            x, y = min(max(x, 0), max(canvas[0] - width, 0)), min(max(y, 0), max(canvas[1] - height, 0))
            place = np.array([x, y, x + width, y + height])
            over = np.minimum(placed[:, 2:], place[2:]) - np.maximum(placed[:, :2], place[:2])
            if not (over > 0).all(1).any():
                placed = np.vstack([placed, place])
                draw.rounded_rectangle(tuple(place.tolist()), radius=pad, fill=color)
                light = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
                ink = (0, 0, 0) if light else (255, 255, 255)
                draw.text((x + pad - left, y + pad - top), caption, fill=ink, font=font)
                break
