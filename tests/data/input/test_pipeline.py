"""Batches: a function of seed and step, of few shapes, with every image in its turn."""

import copy
import json
import re

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.config import Config
from kmaskrcnn.data import evaluation_dataset, load_coco, make_shapes, prepare_image, training_dataset
from kmaskrcnn.data.input.repeat_sampling import draw_repeats, repeat_factors
from kmaskrcnn.data.sizes import bucket_shape


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_coco(make_shapes(tmp_path_factory.mktemp("shapes"), 7, 64, seed=1))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images of many sizes, one of them without objects."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    sizes = [(40, 60), (60, 40), (50, 50), (33, 90), (41, 77), (90, 31), (64, 64)]
    tree = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "thing"}]}
    for i, (h, w) in enumerate(sizes, 1):
        Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)).save(folder / f"{i}.png")
        tree["images"].append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        if i == 3:
            continue
        for k in range(4):
            box = [3 + k, 4 + k, 15, 12]
            polygon = [3 + k, 4 + k, 18 + k, 4 + k, 18 + k, 16 + k, 3 + k, 16 + k]
            common = {"id": len(tree["annotations"]) + 1, "image_id": i, "category_id": 5, "iscrowd": 0}
            tree["annotations"].append({**common, "bbox": box, "area": 180, "segmentation": [polygon]})
    (folder / "instances.json").write_text(json.dumps(tree))
    return load_coco(folder / "instances.json")


def _data(**changes):
    base = {"resize_mode": "native", "mask_resolution": 28, "max_instances": 6}
    return Config().replace(**(base | changes)).data


AUGMENTED = {"crop_size": 64, "scale_jitter": (0.7, 1.5), "rotate90": True, "color_jitter": 0.3, "vertical_flip": True}


def _take(dataset, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset.take(count)]


def test_starting_later_gives_the_same_batches_bit_for_bit(shapes):
    config = _data(**AUGMENTED)
    whole = _take(training_dataset(shapes, config, 3, seed=4), 6)
    rest = _take(training_dataset(shapes, config, 3, seed=4, start_step=4), 2)
    for a, b in zip(whole[4:], rest, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    other = _take(training_dataset(shapes, config, 3, seed=5), 1)[0]
    assert (other["images"] != whole[0]["images"]).any()


EVERYTHING = {
    "max_rotation": 10.0,
    "copy_paste_probability": 0.5,
    "blur_probability": 0.3,
    "jpeg_probability": 0.3,
    "invert_probability": 0.3,
}


def test_what_an_image_goes_through_is_a_function_of_seed_epoch_and_image(shapes):
    config = _data(**AUGMENTED, **EVERYTHING)

    def by_image(batch_size, seed, epochs):
        """The examples of each image by (id, epoch)."""
        found = {}
        steps = epochs * -(-len(shapes) // batch_size)
        for step, batch in enumerate(_take(training_dataset(shapes, config, batch_size, seed), steps)):
            for slot, image_id in enumerate(batch["image_ids"].tolist()):
                epoch = step // -(-len(shapes) // batch_size)
                found[image_id, epoch] = {k: v[slot] for k, v in batch.items()}
        return found

    one, three = by_image(1, 4, 2), by_image(3, 4, 2)
    assert set(one) == set(three)
    for key, example in one.items():  # other batches, other order, the same examples
        for name in ("images", "boxes", "masks", "classes"):
            np.testing.assert_array_equal(example[name], three[key][name])
    image_id = int(shapes.image_ids[0])
    assert (one[image_id, 0]["images"] != one[image_id, 1]["images"]).any()
    assert (by_image(1, 5, 1)[image_id, 0]["images"] != one[image_id, 0]["images"]).any()


def test_no_augmentation_makes_empty_boxes(shapes):
    whole = {"min_size": 64, "max_size": 96, "resize_mode": "short_side", "crop_probability": 0.7}
    for changes in (AUGMENTED | {"scale_jitter": (0.2, 3.0)}, whole):
        for batch in _take(training_dataset(shapes, _data(**changes, **EVERYTHING), 3, seed=1), 12):
            real = batch["classes"] > 0
            assert real.any()
            assert ((batch["boxes"][..., 2:] - batch["boxes"][..., :2]) >= 1 - 1e-4)[real].all()
            assert (batch["boxes"][real] >= 0).all()
            assert (batch["boxes"][..., 2:] <= batch["image_shapes"][:, None] + 1e-4)[real].all()
            masked = (real & ~batch["is_crowd"])[:, : batch["masks"].shape[1]]  # more boxes than masks
            assert (batch["masks"][masked].max(axis=(1, 2)) >= 128).all()


def test_batches_are_whole_and_padded_with_zeros(shapes):
    for batch in _take(training_dataset(shapes, _data(**AUGMENTED), 2, seed=0), 5):
        assert batch["images"].shape == (2, 64, 64, 3)
        assert batch["images"].dtype == np.uint8
        assert batch["masks"].shape == (2, 6, 28, 28)
        padding = batch["classes"] == 0
        for name in ("boxes", "masks", "mask_frames", "is_crowd"):
            assert not batch[name][padding].any()
        size = batch["boxes"][..., 2:] - batch["boxes"][..., :2]
        assert (size[~padding] >= 1).all()
        for image, shape in zip(batch["images"], batch["image_shapes"], strict=True):
            assert not image[shape[0] :].any()
            assert not image[:, shape[1] :].any()


def test_every_image_once_an_epoch(mixed):
    config = _data(crop_size=64)
    ids = np.concatenate([b["image_ids"] for b in _take(training_dataset(mixed, config, 1, seed=0), 14)])
    assert sorted(ids[:7]) == sorted(ids[7:]) == list(range(1, 8))
    assert ids[:7].tolist() != ids[7:].tolist()


def test_images_without_objects_are_in_the_batches(mixed):
    batches = _take(training_dataset(mixed, _data(crop_size=64), 1, seed=0), 7)
    empty = [b for b in batches if b["image_ids"][0] == 3]
    assert len(empty) == 1
    assert not empty[0]["classes"].any()


def test_of_more_objects_than_max_instances_all_boxes_and_a_random_part_of_the_masks_are_trained_on(mixed, caplog):
    config = _data(crop_size=96, max_instances=2, horizontal_flip=False)
    batches = _take(training_dataset(mixed, config, 1, seed=0), 14)
    filled = [b for b in batches if b["image_ids"][0] != 3]
    whole = _take(training_dataset(mixed, _data(crop_size=96, max_instances=20, horizontal_flip=False), 1, seed=0), 14)
    for cut, full in zip(batches, whole, strict=True):
        own, all_of_them = (sorted(map(tuple, b["boxes"][b["classes"] > 0])) for b in (cut, full))
        assert own == all_of_them
        assert cut["masks"].shape[1] == cut["mask_frames"].shape[1] == 2
        for mask, frame in zip(cut["masks"][0], cut["mask_frames"][0], strict=True):
            whose = (full["mask_frames"][0] == frame).all(axis=1)
            assert (full["masks"][0][whose] == mask).all() and whose.any()
    assert len({b["boxes"].tobytes() for b in filled if b["image_ids"][0] == 1}) == 2
    assert re.findall(r"shows \d objects, more than max_instances=2", caplog.text) == [
        "shows 4 objects, more than max_instances=2"
    ]


def test_padded_shapes_are_few():
    config = Config().replace(min_size=800, max_size=1333, min_size_train=(640, 800)).data
    rng = np.random.default_rng(0)
    shapes = {bucket_shape(int(h), int(w), config) for h, w in [*rng.integers(50, 3000, (3000, 2)), (500, 500)]}
    assert shapes == {(800, 800), (800, 1088), (800, 1344), (1088, 800), (1344, 800)}
    assert all(side % 32 == 0 for shape in shapes for side in shape)


def test_batches_of_whole_images_have_one_shape_each(mixed):
    config = Config().replace(min_size=64, max_size=96, mask_resolution=28, max_instances=6).data
    for batch in _take(training_dataset(mixed, config, 2, seed=0), 8):
        assert batch["images"].shape[1:3] in {(64, 64), (64, 96), (96, 64)}
        assert (batch["image_shapes"] <= batch["images"].shape[1:3]).all()
        assert min(batch["image_shapes"].ravel()) > 20


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("mode", ["native", "short_side"])
def test_evaluation_sees_every_image_once(mixed, batch_size, mode):
    config = Config().replace(resize_mode=mode, min_size=64, max_size=96, native_scale=1.5).data
    seen = {}
    for batch in evaluation_dataset(mixed, config, batch_size):
        for i, image_id in enumerate(batch["image_ids"].numpy()):
            assert image_id not in seen
            seen[int(image_id)] = {k: v[i].numpy() for k, v in batch.items()}
    assert sorted(seen) == list(range(1, 8))
    for image_id, row in seen.items():
        size = mixed.sizes[image_id - 1]
        np.testing.assert_array_equal(row["original_shapes"], size)
        np.testing.assert_allclose(row["scales"], row["image_shapes"] / size, rtol=1e-6)
        pixels, shape, scales = prepare_image(mixed.image(image_id - 1), config)
        np.testing.assert_array_equal(pixels, row["images"])
        np.testing.assert_array_equal(shape, row["image_shapes"])
        np.testing.assert_allclose(scales, row["scales"])


def test_a_share_of_the_batches_is_a_piece_of_the_whole_ones(shapes):
    config = _data(**AUGMENTED)
    whole = _take(training_dataset(shapes, config, 4, seed=2, start_step=1), 3)
    share = _take(training_dataset(shapes, config, 4, seed=2, start_step=1, slots=[range(2, 3), range(3, 4)]), 6)
    assert len({int(seed) for batch in whole for seed in batch["sample_seeds"]}) == 12
    for i, part in enumerate(share):
        for name, value in part.items():
            np.testing.assert_array_equal(value[0], whole[i // 2][name][2 + i % 2])


@pytest.mark.parametrize("workers", [2, 3, 20])
def test_workers_share_the_batches_of_an_evaluation(mixed, workers):
    config = Config().replace(resize_mode="short_side", min_size=64, max_size=96).data
    whole = list(evaluation_dataset(mixed, config, 2))
    shares = [list(evaluation_dataset(mixed, config, 2, 0, workers, worker)) for worker in range(workers)]
    assert sum(map(len, shares)) == len(whole)
    for i, batch in enumerate(whole):
        for name, value in shares[i % workers][i // workers].items():
            np.testing.assert_array_equal(value, batch[name])


def test_evaluation_of_the_first_images(mixed):
    ids = [int(i) for b in evaluation_dataset(mixed, _data(), 2, max_images=3) for i in b["image_ids"]]
    assert sorted(ids) == [1, 2, 3]


@pytest.mark.parametrize("image", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
def test_prepare_image_refuses_what_is_no_rgb(image):
    with pytest.raises(ValueError, match="RGB image"):
        prepare_image(image, _data())


def test_images_of_rare_classes_come_more_often(mixed):
    factors = repeat_factors(mixed, 0.5)
    np.testing.assert_array_equal(factors, np.ones(7))  # its only class is in six images of seven
    factors = repeat_factors(mixed, 1.0)
    np.testing.assert_allclose(factors, np.where(mixed.image_ids == 3, 1.0, np.sqrt(7 / 6)))
    np.testing.assert_array_equal(repeat_factors(mixed, 0.0), np.ones(7))


def test_repeats_are_of_one_number_and_right_on_average():
    factors = np.array([1.0, 1.0, 2.5, 1.3, 4.0, 1.0])
    rng = np.random.default_rng(0)
    counts = [np.bincount(draw_repeats(factors, rng), minlength=6) for _ in range(2000)]
    assert {c.sum() for c in counts} == {11}  # of 10.8
    assert all((np.abs(c - factors * 11 / 10.8) < 1).all() for c in counts)
    np.testing.assert_allclose(np.mean(counts, axis=0), factors * 11 / 10.8, atol=0.05)


def test_repeated_images_are_drawn_anew_and_a_later_start_gives_the_same(mixed):
    mixed = copy.deepcopy(mixed)
    config = _data(**AUGMENTED, repeat_factor_threshold=1.0)
    mixed.classes[mixed.rows(0)] = 2  # a class in one image of seven: sqrt(7) times as often
    mixed.class_names, mixed.category_ids = ["thing", "rare"], [5, 6]
    factors = repeat_factors(mixed, 1.0)
    np.testing.assert_allclose(factors[0], np.sqrt(7))
    steps = -(-round(factors.sum()) // 2)
    whole = _take(training_dataset(mixed, config, 2, seed=1), 2 * steps)
    ids = np.stack([b["image_ids"] for b in whole])
    for epoch in (ids[:steps], ids[steps:]):
        assert set(epoch.ravel()) == set(range(1, 8))
        assert (epoch == 1).sum() >= 2
    rare = [b["images"][i] for b in whole[:steps] for i in range(2) if b["image_ids"][i] == 1]
    assert len({image.tobytes() for image in rare}) == len(rare)
    rest = _take(training_dataset(mixed, config, 2, seed=1, start_step=3), 2)
    for a, b in zip(whole[3:5], rest, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
