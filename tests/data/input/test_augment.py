"""Augmentation: pixels, boxes and masks go through the same transform."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from kmaskrcnn.config import Config
from kmaskrcnn.data import resize as resizing
from kmaskrcnn.data import sizes
from kmaskrcnn.data.input import augment, augment_pixels
from kmaskrcnn.data.input.augment import Transform
from kmaskrcnn.data.input.augment_instances import transform_instances
from kmaskrcnn.data.input.copy_paste import paste_instances
from kmaskrcnn.data.sets.masks import rasterize_polygons
from kmaskrcnn.results.mask_paste import paste_mask


def _data(**changes):
    return Config().replace(**changes).data


def _instances(height, width, rng, count=3):
    """Rectangles with whole corners, each filling the left half of its frame."""
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        h, w = 2 * rng.integers(3, height // 4), 2 * rng.integers(3, width // 4)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        boxes[i] = y, x, y + h, x + w
    masks = np.zeros((count, 28, 28), np.uint8)
    masks[:, :, :14] = 255
    boxes_of_masks = boxes.copy()
    boxes_of_masks[:, 3] = (boxes[:, 1] + boxes[:, 3]) / 2
    return {
        "boxes": boxes_of_masks,
        "classes": np.arange(1, count + 1, dtype=np.int32),
        "is_crowd": np.zeros(count, bool),
        "masks": masks,
        "mask_frames": boxes,
    }


def _pixels(image, transform, config):
    geometry, amounts = map(tf.constant, augment.as_arrays(transform))
    moved = augment_pixels.move_pixels(tf.constant(image), geometry, amounts, config)
    return augment_pixels.change_pixels(moved, amounts, config).numpy()


EVERYTHING = {
    "horizontal_flip": True,
    "vertical_flip": True,
    "max_rotation": 15.0,
    "color_jitter": 0.5,
    "invert_probability": 0.5,
    "blur_probability": 0.5,
    "jpeg_probability": 0.5,
}


def test_identity_returns_the_input_bit_for_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (37, 53, 3), np.uint8)
    transform = Transform((0, 0, 37, 53), (37, 53))
    for config in (_data(), _data(**EVERYTHING), _data(**EVERYTHING, crop_size=64, rotate90=True)):
        np.testing.assert_array_equal(_pixels(image, transform, config), image)
    instances = _instances(37, 53, rng)
    for name, value in transform_instances(instances, transform).items():
        np.testing.assert_array_equal(value, instances[name])


def test_settings_that_change_nothing_draw_the_identity():
    config = _data(resize_mode="native", horizontal_flip=False)
    transform = augment.draw_transform(37, 53, np.zeros((0, 4)), config, np.random.default_rng(0))
    assert transform == Transform((0, 0, 37, 53), (37, 53))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(0, 3), st.sampled_from([1, 2]))
def test_boxes_and_masks_follow_the_pixels(seed, flip_x, flip_y, turns, scale):
    rng = np.random.default_rng(seed)
    height, width = 48, 64
    instances = _instances(height, width, rng)
    # Each instance is painted in its own channel, so that the pixels tell where it went.
    image = np.zeros((height, width, 3), np.uint8)
    for i, (frame, mask) in enumerate(zip(instances["mask_frames"], instances["masks"], strict=True)):
        image[..., i] = 255 * paste_mask(mask / 255, frame, height, width)
    window = (int(rng.integers(0, 9)), int(rng.integers(0, 9)), height - 8, width - 8)
    transform = Transform(window, (window[2] * scale, window[3] * scale), flip_x, flip_y, turns)
    config = _data(horizontal_flip=True, vertical_flip=True, crop_size=64, rotate90=True)
    moved = _pixels(image, transform, config)
    assert moved.shape[:2] == transform.output_size
    result = transform_instances(instances, transform)
    kept = result["classes"].tolist()
    for row, number in enumerate(kept):
        truth = moved[..., number - 1] > 127
        mask = paste_mask(result["masks"][row] / 255, result["mask_frames"][row], *transform.output_size)
        assert (mask ^ truth).sum() <= 0.02 * truth.size / 4 + 2 * (mask.shape[0] + mask.shape[1]) * (scale - 1)
        y, x = np.nonzero(truth)
        np.testing.assert_allclose(result["boxes"][row], [y.min(), x.min(), y.max() + 1, x.max() + 1], atol=1.6 * scale)
    for number in {1, 2, 3} - set(kept):
        visible = (moved[..., number - 1] > 127).sum() / scale**2
        whole = (image[..., number - 1] > 127).sum()
        assert visible <= 0.15 * whole + 16  # dropped only where next to nothing is left


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 300))
def test_drawn_transforms_stay_inside_and_leave_no_empty_boxes(seed, height, width):
    rng = np.random.default_rng(seed)
    config = _data(
        resize_mode="native", crop_size=96, scale_jitter=(0.3, 3.0), rotate90=True, vertical_flip=True, color_jitter=0.4
    )
    instances = _instances(height, width, rng, count=5)
    transform = augment.draw_transform(height, width, instances["boxes"], config, rng)
    y, x, h, w = transform.window
    assert y >= 0
    assert x >= 0
    assert y + h <= height
    assert x + w <= width
    assert min(h, w, *transform.size) >= 1
    assert max(transform.size) <= 96
    result = transform_instances(instances, transform)
    size = result["boxes"][:, 2:] - result["boxes"][:, :2]
    assert (size >= 1 - 1e-4).all()
    limit = np.array([*transform.output_size] * 2)
    assert (result["boxes"] >= -1e-4).all()
    assert (result["boxes"] <= limit + 1e-4).all()


def test_short_side_and_long_side():
    config = _data(min_size=800, max_size=1333)
    assert sizes.scaled_size(480, 640, sizes.base_scale(480, 640, config)) == (800, 1067)
    assert sizes.scaled_size(400, 1000, sizes.base_scale(400, 1000, config)) == (533, 1333)
    assert sizes.scaled_size(400, 1000, sizes.base_scale(400, 1000, config, short_side=400)) == (400, 1000)
    native = _data(resize_mode="native", native_scale=0.5)
    assert sizes.scaled_size(401, 1000, sizes.base_scale(401, 1000, native)) == (200, 500)


def test_a_crowd_region_is_clipped_not_dropped():
    instances = _instances(48, 64, np.random.default_rng(4), count=1)
    instances["mask_frames"][0] = instances["boxes"][0] = 0, 0, 48, 64
    instances["is_crowd"][0] = True
    result = transform_instances(instances, Transform((10, 40, 20, 20), (20, 20)))
    np.testing.assert_allclose(result["boxes"], [[0, 0, 20, 20]])


def test_resize_low_passes_smaller_images_and_keeps_batches():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resizing.resize(tf.constant(stripes), tf.constant(16), tf.constant(16)).numpy()
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3
    both = resizing.resize(tf.constant(np.stack([stripes] * 2)), tf.constant(16), tf.constant(16)).numpy()
    np.testing.assert_array_equal(both[1], small)


@pytest.mark.parametrize("size", [(64, 83), (31, 45), (20, 90)])
def test_resize_rounds_what_tensorflow_makes_of_the_bytes(size):
    image = tf.constant(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8, endpoint=True))
    values = tf.image.resize(image, size, antialias=min(size) < 48).numpy()
    np.testing.assert_array_equal(resizing.resize(image, *map(tf.constant, size)).numpy(), np.rint(values))


@pytest.mark.parametrize("run", [lambda f: f, tf.function])
def test_bytes_are_rounded_half_to_even_and_clipped(run):
    values = np.concatenate([np.arange(-4, 260, 0.25), [-1e9, 1e9, 127.49999, 127.50001]]).astype(np.float32)
    expected = np.clip(np.rint(values), 0, 255)
    np.testing.assert_array_equal(run(resizing.to_uint8)(tf.constant(values)).numpy(), expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_invert(value):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    config = _data(invert_probability=1.0, horizontal_flip=False)
    result = _pixels(image, Transform((0, 0, 8, 8), (8, 8), invert=bool(value)), config).astype(int)
    np.testing.assert_allclose(result, 255 - image.astype(int) if value else image, atol=1)


def _painted(instances, height, width):
    """Each instance in its own channel."""
    image = np.zeros((height, width, 3), np.uint8)
    for i, (frame, mask) in enumerate(zip(instances["mask_frames"], instances["masks"], strict=True)):
        image[..., i] = 255 * paste_mask(mask / 255, frame, height, width)
    return image


def _mask_of(instances, row, size):
    return paste_mask(instances["masks"][row] / 255, instances["mask_frames"][row], *size)


def _check_boxes_are_those_of_the_masks(instances, size, slack):
    for row in range(len(instances["boxes"])):
        y, x = np.nonzero(_mask_of(instances, row, size))
        assert len(y)
        tight = [y.min(), x.min(), y.max() + 1, x.max() + 1]
        np.testing.assert_allclose(instances["boxes"][row], tight, atol=slack)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-45, 45), st.booleans(), st.booleans(), st.integers(0, 3))
def test_boxes_and_masks_follow_a_rotation(seed, angle, flip_x, flip_y, turns):
    rng = np.random.default_rng(seed)
    height, width = 96, 128
    instances = _instances(height, width, rng)
    instances["masks"] = np.zeros((3, 56, 56), np.uint8)
    instances["masks"][:, :, :28] = 255
    image = _painted(instances, height, width)
    y, x = (int(v) for v in rng.integers(0, 9, 2))
    transform = Transform((y, x, height - 8, width - 8), (height - 8, width - 8), angle, flip_x, flip_y, turns)
    config = _data(vertical_flip=True, crop_size=128, rotate90=True, max_rotation=45.0)
    moved = _pixels(image, transform, config)
    result = transform_instances(instances, transform)
    size = transform.output_size
    outside = _pixels(np.zeros_like(image), transform, config)  # gray where nothing was
    for row, number in enumerate(result["classes"].tolist()):
        truth = (moved[..., number - 1] > 127) & (outside[..., 0] < 60)
        mask = _mask_of(result, row, size)
        edge = 2 * sum(np.ptp(result["boxes"][row].reshape(2, 2), axis=0))
        assert (mask ^ truth).sum() <= 1.5 * edge + 4
    _check_boxes_are_those_of_the_masks(result, size, 2.5)
    box_size = result["boxes"][:, 2:] - result["boxes"][:, :2]
    assert (box_size >= 1).all()
    for number in {1, 2, 3} - set(result["classes"].tolist()):
        visible = ((moved[..., number - 1] > 127) & (outside[..., 0] < 60)).sum()
        assert visible <= 0.15 * (image[..., number - 1] > 127).sum() + 16


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 300))
def test_a_crop_keeps_its_objects_and_the_padded_shape(seed, height, width):
    rng = np.random.default_rng(seed)
    config = _data(min_size=128, max_size=224, crop_probability=1.0, horizontal_flip=False)
    instances = _instances(height, width, rng, count=4)
    boxes = instances["boxes"]
    transform = augment.draw_transform(height, width, boxes, config, rng)
    whole = sizes.scaled_size(height, width, sizes.base_scale(height, width, config))
    assert transform.size[0] <= whole[0]
    assert transform.size[1] <= whole[1]
    y, x, h, w = transform.window
    assert 0 <= y <= y + h <= height
    assert 0 <= x <= x + w <= width
    assert abs(transform.size[0] / h / (transform.size[1] / w) - 1) <= 1 / min(transform.size) + 1e-6
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    inside = ((centers > (y, x)) & (centers < (y + h, x + w))).all(axis=1)
    assert inside.any()
    left = np.minimum(boxes[:, 2:], (y + h, x + w)) - np.maximum(boxes[:, :2], (y, x))
    assert (left.prod(axis=1) >= 0.75 * (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))[inside].all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(-30, 30), st.integers(-30, 30))
def test_pasted_objects_hide_what_is_below_them(seed, dy, dx):
    rng = np.random.default_rng(seed)
    size = (72, 96)
    target, source = _instances(*size, rng), _instances(80, 90, rng)
    result, covered = paste_instances(target, source, (80, 90), np.array([dy, dx]), size, rng)
    image = _painted(target, *size)
    below = [
        n
        for n in range(len(result["boxes"]))
        if n < 3 and (result["mask_frames"][n] == target["mask_frames"]).all(1).any()
    ]
    above = [n for n in range(len(result["boxes"])) if n not in below]
    union = np.zeros(size, bool)
    for row in above:
        union |= _mask_of(result, row, size)
    np.testing.assert_array_equal(union, covered)
    for row in below:
        number = result["classes"][row]
        truth = (image[..., number - 1] > 0) & ~covered
        mask = _mask_of(result, row, size)
        edge = 2 * sum(np.ptp(result["mask_frames"][row].reshape(2, 2), axis=0))
        assert (mask ^ truth).sum() <= edge
    _check_boxes_are_those_of_the_masks(result, size, 2.5)
    assert (result["boxes"][:, 2:] - result["boxes"][:, :2] >= 1).all()
    for number in {1, 2, 3} - {int(result["classes"][row]) for row in below}:
        assert ((image[..., number - 1] > 0) & ~covered).sum() <= 0.2 * (image[..., number - 1] > 0).sum() + 16


def test_nothing_is_pasted_from_beyond_the_other_image():
    size = (72, 96)
    target = {name: value[:0] for name, value in _instances(*size, np.random.default_rng(0)).items()}
    source = _instances(40, 50, np.random.default_rng(1), count=1)
    source["mask_frames"][0] = -10, 20, 60, 80  # reaches over three borders of an image of 40 x 50
    source["boxes"][0] = 0, 20, 40, 50
    source["masks"][:] = 255
    for seed in range(5):
        result, covered = paste_instances(target, source, (40, 50), np.array([8, 9]), size, np.random.default_rng(seed))
        if covered.any():
            y, x = np.nonzero(covered)
            assert (y.min(), y.max() + 1) == (8, 48)
            assert x.min() in (28, 29, 30)
            assert x.max() + 1 in (58, 59, 60)
            np.testing.assert_array_equal(_mask_of(result, 0, size), covered)
            return
    raise AssertionError("nothing was drawn")


def test_crowds_are_neither_pasted_nor_dropped():
    size = (48, 64)
    target, source = (_instances(*size, np.random.default_rng(s), count=1) for s in (0, 1))
    source["is_crowd"][:] = True
    rng = np.random.default_rng(0)
    for _ in range(10):
        result, covered = paste_instances(target, source, size, np.zeros(2, int), size, rng)
        assert not covered.any()
        assert result is target
    target["is_crowd"][:] = True
    source = {**source, "is_crowd": np.zeros(1, bool), "masks": np.full((1, 28, 28), 255, np.uint8)}
    source["boxes"] = source["mask_frames"] = np.array([[0, 0, 48, 64]], np.float32)
    for _ in range(10):
        result, covered = paste_instances(target, source, size, np.zeros(2, int), size, rng)
        if covered.any():
            assert covered.all()
            assert result["is_crowd"].tolist() == [True, False]
            assert not result["masks"][0].any()


def _crack(cells):
    """A line of 3 pixels from corner to corner of 420 x 600 pixels: it fills no cell of its mask by half."""
    outline = np.array([9.0, 11.5, 11.0, 8.5, 611.0, 428.5, 609.0, 431.5])
    frame = np.array([8.5, 9.0, 431.5, 611.0], np.float32)
    mask = rasterize_polygons([outline], frame, cells)
    assert 0 < mask.max() < 128
    flags = {"classes": np.ones(1, np.int32), "is_crowd": np.zeros(1, bool)}
    return {"boxes": frame[None].copy(), **flags, "masks": mask[None], "mask_frames": frame[None]}


@pytest.mark.parametrize("cells", [28, 56])
def test_thin_objects_keep_what_a_crop_shows_of_them(cells):
    step = 602 / cells  # a cell
    half = Transform((0, 0, 220, 310), (220, 310))
    (box,) = transform_instances(_crack(cells), half)["boxes"]
    np.testing.assert_allclose(box, [8.5, 9, 220, 310], atol=step)
    # The crop shows a twentieth of it.
    assert not len(transform_instances(_crack(cells), Transform((0, 0, 30, 40), (30, 40)))["boxes"])
    turned = transform_instances(_crack(cells), Transform((0, 0, 440, 620), (440, 620), 10.0))
    (box,) = turned["boxes"]
    # The ends lie 210 rows and 300 columns from the middle.
    cos, sin = np.cos(np.radians(10)), np.sin(np.radians(10))
    rows, columns = 210 * cos - 300 * sin, 210 * sin + 300 * cos
    np.testing.assert_allclose(box, [220 - rows, max(310 - columns, 0), 220 + rows, min(310 + columns, 620)], atol=step)


@pytest.mark.parametrize("cells", [56, 112])
def test_lines_that_fill_some_cells_keep_their_ends(cells):
    outline = np.array([8.0, 13.0, 12.0, 7.0, 612.0, 427.0, 608.0, 433.0])
    frame = np.array([7, 8, 433, 612], np.float32)
    instances = _crack(28) | {"masks": rasterize_polygons([outline], frame, cells)[None]}
    instances |= {"boxes": frame[None].copy(), "mask_frames": frame[None]}
    assert instances["masks"].max() >= 128
    (box,) = transform_instances(instances, Transform((0, 0, 220, 310), (220, 310)))["boxes"]
    np.testing.assert_allclose(box, [7, 8, 220, 310], atol=604 / cells)


@pytest.mark.parametrize("cells", [28, 56])
def test_thin_objects_keep_what_a_pasted_object_leaves_of_them(cells):
    size = (440, 620)
    square = {**_crack(cells), "masks": np.full((1, cells, cells), 255, np.uint8)}
    for part, left in ((0.4, 1), (0.95, 0)):
        square["boxes"] = square["mask_frames"] = np.array([[0, 0, 440 * part, 620 * part]], np.float32)
        drawn = (np.random.default_rng(seed) for seed in range(20))
        pasted = (paste_instances(_crack(cells), square, size, np.zeros(2, int), size, rng) for rng in drawn)
        result = next(result for result, covered in pasted if covered.any())
        assert len(result["boxes"]) == 1 + left
        if left:
            np.testing.assert_allclose(result["boxes"][0], [440 * part, 620 * part, 431.5, 611], atol=1.5 * 602 / cells)


def test_blur_and_jpeg_noise_against_pillow():
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 255, (12, 16, 3), np.uint8), 4, 0), 4, 1)
    config = _data(blur_probability=1.0, jpeg_probability=1.0)
    blurred = _pixels(image, Transform((0, 0, 48, 64), (48, 64), blur=1.5), config).astype(int)
    reference = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))).astype(int)
    assert np.abs(blurred - reference)[8:-8, 8:-8].mean() < 2  # Pillow's is three box filters
    noisy = _pixels(image, Transform((0, 0, 48, 64), (48, 64), jpeg_quality=30), config).astype(int)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=30)
    reference = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(noisy - reference).mean() < 4
    assert np.abs(noisy - image.astype(int)).mean() > 2


def test_colors_are_those_of_the_steps_one_by_one():
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (9, 11, 3), np.uint8)
    transform = Transform((0, 0, 9, 11), (9, 11), gains=(0.9, 1.1, 1.05), contrast=1.2, brightness=0.9, saturation=0.7)
    source = image.astype(np.float64)
    values = ((source - source.mean()) * 1.2 + source.mean() * 0.9) * (0.9, 1.1, 1.05)
    gray = values.mean(-1, keepdims=True)
    expected = np.clip(gray + (values - gray) * 0.7, 0, 255)
    found = _pixels(image, transform, _data(color_jitter=0.5)).astype(int)
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("offset", [(0, 0), (5, 7), (-6, -3), (4, -9)])
def test_place(offset):
    image = np.random.default_rng(0).integers(1, 255, (20, 30, 3), np.uint8)
    found = augment_pixels.place(tf.constant(image), tf.constant(offset), tf.constant([24, 28])).numpy()
    expected = np.zeros((60, 80, 3), np.uint8)
    expected[20 + offset[0] : 40 + offset[0], 20 + offset[1] : 50 + offset[1]] = image
    np.testing.assert_array_equal(found, expected[20:44, 20:48])
