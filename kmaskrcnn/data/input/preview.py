"""A contact sheet of training images as the network gets them."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kmaskrcnn.config import Config
from kmaskrcnn.data.input.pipeline import training_dataset
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.results.draw import draw_instances
from kmaskrcnn.results.mask_paste import paste_window
from kmaskrcnn.results.pasted_masks import PastedMasks

_SIDE, _LABEL, _GAP, _COLUMNS = 360, 20, 6, 5


def contact_sheet(dataset: CocoDataset, config: Config, count: int) -> Image.Image:
    """The first `count` images of training with their boxes and masks, the file's name and the size below each."""
    columns = min(count, _COLUMNS)
    rows = math.ceil(count / columns)
    width, height = (_SIDE + _GAP) * columns + _GAP, (_SIDE + _LABEL + _GAP) * rows + _GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    index = {int(image_id): i for i, image_id in enumerate(dataset.image_ids)}
    batches = training_dataset(dataset, config.data, 1, config.train.seed).take(count)
    for number, batch in enumerate(batches.as_numpy_iterator()):
        one = {name: value[0] for name, value in batch.items()}
        h, w = map(int, one["image_shapes"])
        real = one["classes"] > 0
        captions = [dataset.class_names[c - 1] for c in one["classes"][real]]
        # Masks and frames of objects that are cut go on beyond the border; the image ends where the network's does.
        masks = PastedMasks(
            paste_window(mask / np.float32(255), frame, h, w)
            for mask, frame in zip(one["masks"][real], one["mask_frames"][real], strict=True)
        )
        picture = draw_instances(one["images"][:h, :w], one["boxes"][real], masks, captions)
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        x, y = _GAP + number % columns * (_SIDE + _GAP), _GAP + number // columns * (_SIDE + _LABEL + _GAP)
        sheet.paste(picture, (x, y))
        name = dataset.file_names[index[int(one["image_ids"])]]
        draw.text((x, y + _SIDE + 2), f"{name}, {w} x {h}, {int(real.sum())} objects"[:60], fill="black", font=font)
    return sheet
