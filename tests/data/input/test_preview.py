"""The contact sheet of augmented images."""

import numpy as np

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco, make_shapes
from kmaskrcnn.data.input.preview import contact_sheet


def test_contact_sheet_shows_as_many_images_as_asked_for(tmp_path):
    dataset = load_coco(make_shapes(tmp_path, 4, 64, seed=1))
    config = Config().replace(crop_size=64, resize_mode="native", mask_resolution=28, max_rotation=10.0)
    sheet = np.asarray(contact_sheet(dataset, config, 7))
    assert sheet.shape == (778, 1836, 3)
    cells = [sheet[6 + r * 386 :, 6 + c * 366 :][:360, :360] for r in range(2) for c in range(5)]
    assert [bool((cell != 255).any()) for cell in cells] == [True] * 7 + [False] * 3
    again = np.asarray(contact_sheet(dataset, config, 7))
    np.testing.assert_array_equal(sheet, again)
