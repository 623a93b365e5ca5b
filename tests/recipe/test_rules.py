"""Each rule of the recipe: the fact that it follows from, and what it chooses."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import load_coco
from kmaskrcnn.recipe import (
    RULES,
    Facts,
    Machine,
    Start,
    facts_of,
    input_rules,
    make_recipe,
    model_rules,
    training_rules,
)
from kmaskrcnn.recipe.facts import most_in_window
from kmaskrcnn.recipe.given import Given, scale_of
from kmaskrcnn.training.schedules import scaled_rate

IMAGENET = Start("imagenet", {"backbone": "mobilenet_v2", "init_weights": "imagenet"}, "here")
COCO = Start("coco", {"backbone": "resnet50", "init_weights": "a_model"}, "here")
NONE = Start("none", {"backbone": "resnet18", "init_weights": "none"}, "nothing here", "get better ones")
CPU, GPU = Machine(0, 24.0), Machine(1, 24.0)
SQUARE = [8, 8, 38, 8, 38, 38, 8, 38]


def make_facts(
    sides=(60, 60), images=20, size=(480, 640), each=5, classes=None, class_names=("thing",), seed=0, look=(0.1, 0.0)
):
    """Boxes of the given height and width at random places of images of one size (or of one each)."""
    rng = np.random.default_rng(seed)
    sizes = np.array(size if np.ndim(size) == 2 else [size] * images, np.float64)
    owners = np.repeat(np.arange(len(sizes)), each)
    sides = np.broadcast_to(np.asarray(sides, np.float64), (len(owners), 2))
    corners = rng.random((len(owners), 2)) * np.maximum(sizes[owners] - sides, 0)
    classes = np.zeros(len(owners), np.int64) if classes is None else np.asarray(classes)
    lean = rng.normal(0, 0.05, (len(owners), 2))
    boxes = np.concatenate([corners, corners + sides], axis=1)
    return Facts(tuple(class_names), sizes, boxes, owners, classes, np.arange(len(owners)), lean, *look)


def make_given(facts=None, machine=CPU, start=IMAGENET, fixed=(), evaluation=True, **settings):
    config = Config().replace(**settings)
    return Given(facts or make_facts(), machine, start, config, frozenset(fixed), evaluation)


def chosen(rule, *arguments, **keywords):
    """What a rule chooses, by name."""
    return {choice.name: choice.value for choice in rule(make_given(*arguments, **keywords))}


def test_weights_bring_their_backbone():
    assert chosen(model_rules.starting_weights) == {"backbone": "mobilenet_v2", "init_weights": "imagenet"}


def test_normalization_is_trained_but_for_photographs_and_a_model_of_coco():
    trained, frozen = ({"backbone_norm": "bn", "frozen_stages": 0}, {"backbone_norm": "frozen_bn", "frozen_stages": 2})
    assert chosen(model_rules.backbone_training) == trained
    assert chosen(model_rules.backbone_training, make_facts(look=(0.22, 0.15))) == frozen
    asked = {"fixed": ["backbone_norm"], "backbone_norm": "gn"}  # whose scales are not ImageNet's
    assert chosen(model_rules.backbone_training, make_facts(look=(0.22, 0.15)), **asked)["frozen_stages"] == 0
    assert chosen(model_rules.backbone_training, make_facts(look=(0.22, 0.0))) == trained  # gray
    assert chosen(model_rules.backbone_training, make_facts(look=(0.08, 0.15))) == trained  # faint
    assert chosen(model_rules.backbone_training, make_facts(look=(np.nan, np.nan))) == trained
    assert chosen(model_rules.backbone_training, start=NONE)["frozen_stages"] == 0
    assert chosen(model_rules.backbone_training, start=COCO) == {}


def test_a_convnext_keeps_its_normalization_and_has_adamw():
    start = Start("imagenet", {"backbone": "convnext_tiny", "init_weights": "imagenet"}, "here")
    recipe = make_recipe(make_facts(), CPU, start, Config())
    model, train = recipe.config.model, recipe.config.train
    assert (model.backbone, model.backbone_norm, model.frozen_stages) == ("convnext_tiny", "frozen_bn", 0)
    assert model.roi_aligned
    assert (train.optimizer, train.weight_decay, train.batch_size) == ("adamw", 0.05, 4)
    assert train.learning_rate == pytest.approx(5e-5)
    sgd = chosen(training_rules.optimizer, start=start, fixed=("optimizer",), batch_size=4, backbone="convnext_tiny")
    assert sgd["learning_rate"] == pytest.approx(0.02) and "optimizer" not in sgd
    asked = make_recipe(make_facts(), CPU, start, Config().replace(optimizer="adamw"), {"optimizer"})
    assert "optimizer" not in {choice.name for choice in asked.choices}
    assert asked.config == recipe.config
    asked = make_recipe(make_facts(), CPU, start, Config().replace(momentum=0.8), {"momentum"})
    assert asked.config.train.optimizer == "sgd"  # AdamW would not read it


@pytest.mark.parametrize(("start", "most"), [(IMAGENET, 1e-4), (NONE, 1e-4), (COCO, 2.5e-5)])
def test_rate_and_decay_follow_the_optimizer_that_is_given(start, most):
    recipe = make_recipe(make_facts(), CPU, start, Config().replace(optimizer="adamw"), {"optimizer"})
    train = recipe.config.train
    assert train.optimizer == "adamw"
    assert train.weight_decay == 0.05
    assert train.learning_rate == pytest.approx(most * (train.batch_size / 16) ** 0.5)
    reasons = {choice.name: choice.reason for choice in recipe.choices}
    assert "optimizer" not in reasons
    assert "Swin's Mask R-CNN (Liu et al. 2021)" in reasons["learning_rate"]
    own = {"optimizer": "adamw", "weight_decay": 0.01, "learning_rate": 0.001}
    train = make_recipe(make_facts(), CPU, start, Config().replace(**own), own).config.train
    assert (train.weight_decay, train.learning_rate) == (0.01, 0.001)


def test_input_is_as_large_as_the_machine_likes():
    found = chosen(input_rules.input_scale, make_facts(size=(1200, 1600), sides=(200, 200)))
    assert found == {"resize_mode": "short_side", "min_size": 480, "max_size": 640}
    found = chosen(input_rules.input_scale, make_facts(size=(1200, 1600), sides=(200, 200)), GPU)
    assert found["min_size"] == 800
    # A processor is given no more pixels than there are.
    assert chosen(input_rules.input_scale, make_facts(size=(240, 320)))["min_size"] == 240


def test_small_objects_keep_their_pixels():
    found = chosen(input_rules.input_scale, make_facts(size=(1000, 1500), sides=(15, 15)))
    assert found["min_size"] == 1008
    assert found["max_size"] >= 1500
    # In tiles, which would be scaled to the size of an image, at a scale.
    found = chosen(input_rules.input_scale, make_facts(size=(2000, 3000), sides=(15, 15)))
    assert found == {"resize_mode": "native", "native_scale": 1.0}
    # The 5th percentile is never below 8 pixels, if twice the size is enough for that.
    rng = np.random.default_rng(0)
    for side in (4.5, 6, 20, 35):
        sides = np.exp(rng.normal(np.log(side), 0.3, (400, 1))) * [1, 1]
        facts = make_facts(size=(700, 900), sides=sides, images=40, each=10)
        config = Config().replace(**chosen(input_rules.input_scale, facts))
        scale = scale_of(facts, config)[0]
        assert np.percentile(facts.sides, 5) * scale >= min(8, 2 * np.percentile(facts.sides, 5)) * 0.99
        assert scale <= 2.03  # sides are whole multiples of 16


def test_images_of_many_sizes_at_one_scale_stay_as_they_are():
    sizes = [(256, 256), (512, 640), (1024, 1360)] * 10
    facts = make_facts(size=sizes, sides=(24, 24))
    assert chosen(input_rules.input_scale, facts) == {"resize_mode": "native", "native_scale": 1.0}
    # Objects that grow with their images are seen at one size when the images are.
    sides = np.repeat([[60, 60], [120, 120], [240, 240]] * 10, 5, axis=0)
    assert chosen(input_rules.input_scale, make_facts(size=sizes, sides=sides))["resize_mode"] == "short_side"


def recipe_with(facts=None, machine=CPU, **given):
    """The recipe where the user gave these settings."""
    return make_recipe(facts or make_facts(), machine, IMAGENET, Config().replace(**given), given)


def test_a_given_scale_is_used():
    recipe = recipe_with(native_scale=0.5)
    assert recipe.config.data.resize_mode == "native"
    assert recipe.config.data.native_scale == 0.5
    assert recipe_with(native_scale=0.5, resize_mode="short_side").config.data.resize_mode == "short_side"
    with pytest.raises(ConfigError, match="native_scale and min_size exclude each other"):
        recipe_with(native_scale=0.5, min_size=400)


def test_given_training_sizes_are_used():
    varied = make_facts(size=[(256, 256), (512, 640), (1024, 1360)] * 10, sides=(24, 24))
    tiled = make_facts(size=(2000, 3000), sides=(15, 15))
    for facts in (varied, tiled):
        assert recipe_with(facts).config.data.resize_mode == "native"
        data = recipe_with(facts, min_size_train=(300, 400)).config.data
        assert (data.resize_mode, data.min_size, data.min_size_train) == ("short_side", 400, (300, 400))
        assert data.max_size >= 528


def test_the_crop_holds_the_large_objects():
    base = {"resize_mode": "native", "native_scale": 1.0}
    assert chosen(input_rules.training_crop, make_facts(sides=(30, 30)), **base) == {"crop_size": 256}
    assert chosen(input_rules.training_crop, make_facts(sides=(250, 100)), **base) == {"crop_size": 448}
    assert chosen(input_rules.training_crop, make_facts(sides=(100, 120)), **base) == {"crop_size": 320}
    assert chosen(input_rules.training_crop, make_facts(size=(100, 130), sides=(30, 30)), **base) == {"crop_size": 160}
    assert chosen(input_rules.training_crop, make_facts(sides=(30, 30)), GPU, **base) == {"crop_size": 512}
    assert chosen(input_rules.training_crop, crop_probability=0.5, **base) == {}


def test_jitter_keeps_small_objects_visible_and_large_ones_whole():
    base = {"resize_mode": "native", "crop_size": 256}
    assert chosen(input_rules.scale_jitter, make_facts(sides=(16, 16)), **base) == {"scale_jitter": (1.0, 1.6)}
    assert chosen(input_rules.scale_jitter, make_facts(sides=(180, 180)), **base) == {"scale_jitter": (0.6, 1.42)}
    assert chosen(input_rules.scale_jitter, resize_mode="native") == {}


@pytest.mark.parametrize("crop", [96, 256, 448])
@pytest.mark.parametrize("sides", [(6, 6), (20, 20), (120, 40), (400, 300)])
def test_no_anchor_is_longer_than_the_crop(crop, sides):
    found = chosen(model_rules.anchors, make_facts(sides=sides), resize_mode="native", crop_size=crop)
    longest = max(max(r, 1 / r) ** 0.5 for r in found["anchor_aspect_ratios"])
    assert max(found["anchor_sizes"]) * longest <= crop
    assert list(found["anchor_sizes"]) == sorted(found["anchor_sizes"])


def test_anchors_follow_the_boxes():
    base = {"resize_mode": "native", "crop_size": 256}
    assert chosen(model_rules.anchors, make_facts(sides=(12, 12)), **base)["anchor_sizes"][0] <= 14
    high = chosen(model_rules.anchors, make_facts(sides=(120, 24)), **base)["anchor_aspect_ratios"]
    assert max(high) >= 3
    assert chosen(model_rules.anchors, start=COCO, **base) == {}  # its RPN knows its own


def test_free_orientation_is_turned_and_upright_objects_are_not():
    free = make_facts(images=40)
    assert chosen(input_rules.flips, free, crop_size=256) == {
        "horizontal_flip": True,
        "vertical_flip": True,
        "rotate90": True,
    }
    assert not chosen(input_rules.flips, free)["rotate90"]  # needs a crop
    high = make_facts(images=40, sides=(90, 30))
    assert chosen(input_rules.flips, high, crop_size=256)["vertical_flip"]
    assert not chosen(input_rules.flips, high, crop_size=256)["rotate90"]
    discs = dataclasses.replace(free, lean=np.full_like(free.lean, 0.003))  # a rounding, the same in each
    assert chosen(input_rules.flips, discs, crop_size=256)["rotate90"]
    pears = dataclasses.replace(free, lean=np.add(free.lean, [0.08, 0.0]))
    found = chosen(input_rules.flips, pears, crop_size=256)
    assert found == {"horizontal_flip": True, "vertical_flip": False, "rotate90": False}
    feet = dataclasses.replace(free, lean=np.add(free.lean, [0.0, 0.12]))
    assert not chosen(input_rules.flips, feet)["horizontal_flip"]


def test_one_upright_class_is_enough_and_few_objects_tell_nothing():
    classes = np.repeat([0, 1], [150, 50])
    sides = np.where(classes[:, None], [100, 30], [50, 50])
    names = ("ball", "person")
    facts = make_facts(images=40, sides=sides, classes=classes, class_names=names)
    choices = input_rules.flips(make_given(facts, crop_size=256))
    assert "person" in choices[2].reason
    assert not choices[2].value
    few = chosen(input_rules.flips, make_facts(images=10), crop_size=256)
    assert few == {"horizontal_flip": True, "vertical_flip": False, "rotate90": False}


def test_near_objects_at_the_bottom_are_a_view_with_an_up():
    rng = np.random.default_rng(0)
    sides = np.exp(rng.normal(4, 0.4, (200, 1))) * [1, 1]
    facts = make_facts(images=40, sides=sides)
    middle = 60 + (sides[:, :1] - 20) * 2.5
    boxes = np.concatenate([middle - sides[:, :1] / 2, facts.boxes[:, 1:2], middle + sides[:, :1] / 2], axis=1)
    facts = dataclasses.replace(facts, boxes=np.concatenate([boxes, facts.boxes[:, 3:]], axis=1))
    assert not chosen(input_rules.flips, facts, crop_size=256)["vertical_flip"]


def test_colors_vary_less_the_more_images_there_are():
    strengths = [chosen(input_rules.colors, make_facts(images=n, each=1))["color_jitter"] for n in (10, 3000, 30000)]
    assert strengths == [0.3, 0.2, 0.0]


def test_rows_and_detections_follow_the_fullest_image():
    few = chosen(model_rules.instances, make_facts(each=3))
    assert few == {"max_instances": 10, "max_detections": 100}
    many = chosen(model_rules.instances, make_facts(each=210, images=2))
    assert many == {"max_instances": 210, "max_detections": 300}


def test_of_large_crowded_images_the_rows_are_those_of_a_crop_and_a_tile():
    facts = make_facts(size=(2000, 3000), sides=(15, 15), each=2000, images=3)
    whole = chosen(model_rules.instances, facts, resize_mode="native")
    assert whole == {
        "max_instances": 2000,
        "max_detections": 2500,
        "rpn_pre_nms_top_k": 8000,
        "rpn_post_nms_top_k": 8000,
    }
    found = chosen(
        model_rules.instances, facts, resize_mode="native", crop_size=448, scale_jitter=(0.8, 1.6), tile_size=1536
    )
    # A crop shows 2000 * (448 / 0.8)**2 / 6e6 = 105 objects on average, the fullest one more.
    assert 105 < found["max_instances"] <= 2 * 105
    assert 2000 * 1536**2 / 6e6 < found["max_detections"] <= 1900
    recipe = make_recipe(facts, GPU, IMAGENET, Config())
    assert recipe.config.data.resize_mode == "native"  # a tile is seen at the scale of training
    assert recipe.config.evaluation.tile_size and recipe.config.model.max_detections < 2500
    assert recipe.config.data.max_instances < 1000  # at 112 x 112 cells 2,000 masks are 25 MB an image


@pytest.mark.parametrize("side", [30.0, 77.0, 200.0, 5000.0])
def test_no_window_holds_more_objects_than_the_bound(side):
    facts = make_facts(size=(400, 600), sides=(9, 9), each=60, images=4)
    bound = most_in_window(facts, np.full(4, side))
    centers = (facts.boxes[:, :2] + facts.boxes[:, 2:]) / 2
    most = 0
    for corner, image in zip(centers - 1e-6, facts.box_images, strict=True):
        for y in corner[0] + [0.0, -side / 2, -side + 2e-6]:
            inside = (centers >= (y, corner[1])) & (centers < (y + side, corner[1] + side))
            most = max(most, int((inside.all(axis=1) & (facts.box_images == image)).sum()))
    assert most <= bound <= 60
    assert side < 1000 or bound == 60
    assert side > 30 or bound < 20


def test_heads_are_narrow_on_a_processor_and_sample_by_what_a_crop_shows():
    few = chosen(model_rules.heads, make_facts(each=4), resize_mode="native", crop_size=480)
    assert (few["fpn_channels"], few["roi_batch_size"], few["max_mask_rois"]) == (128, 128, 24)
    many = chosen(model_rules.heads, make_facts(each=80), resize_mode="native", crop_size=320)
    assert (many["roi_batch_size"], many["max_mask_rois"], many["rpn_post_nms_top_k"]) == (192, 40, 1000)
    assert chosen(model_rules.heads, machine=GPU) == {}
    assert "fpn_channels" not in chosen(model_rules.heads, start=COCO)


def test_the_batch_fits_the_memory():
    assert chosen(training_rules.batch, crop_size=256)["batch_size"] == 4
    assert chosen(training_rules.batch, machine=Machine(0, 4.0), crop_size=448)["batch_size"] == 1
    assert chosen(training_rules.batch, machine=GPU, crop_size=512)["batch_size"] == 16
    assert chosen(training_rules.batch, machine=Machine(1, 8.0), crop_size=1024)["batch_size"] == 1
    assert chosen(training_rules.batch, machine=Machine(4, 80.0, 4), crop_size=512)["batch_size"] == 16
    assert chosen(training_rules.batch, start=COCO, crop_size=448)["batch_size"] == 2


@pytest.mark.parametrize(("parts", "size"), [(1, 4), (2, 4), (3, 6), (8, 8)])
def test_the_batch_divides_into_the_given_parts(parts, size):
    given = {"accumulate_steps": parts}
    assert recipe_with(crop_size=256, **given).config.train.batch_size == size
    spread = chosen(training_rules.batch, machine=Machine(4, 80.0, 4), crop_size=512, **given)["batch_size"]
    assert spread % (4 * parts) == 0


def test_steps_are_passes_over_the_images_between_a_floor_and_a_ceiling():
    def steps(images, **keywords):
        return chosen(training_rules.run_length, make_facts(images=images, each=1), batch_size=4, **keywords).get(
            "steps"
        )

    assert steps(10) == 600
    assert steps(200) == 1800
    assert steps(100000) == 4000
    assert steps(100000, machine=GPU) == 90000
    assert steps(10, start=COCO) == 300
    assert steps(10, start=NONE) == 1500
    assert steps(10, max_minutes=20.0) is None
    assert steps(10, epochs=3.0) is None


def test_the_rate_follows_the_batch():
    for size, rate in ((1, 0.005), (4, 0.02), (16, 0.04)):
        assert chosen(training_rules.optimizer, batch_size=size)["learning_rate"] == pytest.approx(rate)
    assert chosen(training_rules.optimizer, start=COCO, batch_size=2)["learning_rate"] == pytest.approx(0.0025)
    assert chosen(training_rules.optimizer)["warmup_share"] == 0.1


def test_a_given_schedule_is_used():
    train = recipe_with(warmup_steps=500).config.train
    assert (train.warmup_steps, train.warmup_share) == (500, 0.0)
    train = recipe_with(drop_at=(0.5, 0.8)).config.train
    assert (train.schedule, train.drop_at) == ("step", (0.5, 0.8))
    assert recipe_with(drop_at=(0.5, 0.8), schedule="constant").config.train.schedule == "constant"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_scaled_rate_is_that_of_the_recipe(optimizer):
    plain = recipe_with(optimizer=optimizer).config.train
    scaled = recipe_with(optimizer=optimizer, reference_batch_size=16).config.train
    assert scaled.batch_size == plain.batch_size == 4
    assert scaled_rate(scaled) == pytest.approx(scaled_rate(plain))
    own = recipe_with(optimizer=optimizer, reference_batch_size=16, learning_rate=0.02).config.train
    assert scaled_rate(own) == pytest.approx(0.005)


def test_weights_are_averaged_over_a_tenth_of_the_run():
    for steps, decay in ((50, 0.9), (600, 0.9833), (10**6, 0.9998)):
        assert chosen(training_rules.averages, steps=steps)["ema_decay"] == pytest.approx(decay, abs=1e-4)
    assert chosen(training_rules.averages, max_minutes=20.0)["ema_decay"] == 0.999


def test_rare_classes_are_sampled_more_often_where_classes_are_skewed():
    def threshold(classes):
        facts = make_facts(images=len(classes), each=1, classes=classes, class_names=("a", "b"))
        return chosen(training_rules.sampling, facts).get("repeat_factor_threshold")

    assert threshold([0] * 95 + [1] * 5) == pytest.approx(0.95)
    assert threshold([0] * 60 + [1] * 40) is None
    assert chosen(training_rules.sampling) == {}


def test_evaluation_a_few_times():
    found = chosen(training_rules.evaluation, steps=800)
    assert found == {"checkpoint_every": 100, "eval_every": 100, "patience": 4}
    assert "eval_every" not in chosen(training_rules.evaluation, steps=800, evaluation=False)
    assert chosen(training_rules.evaluation, max_minutes=20.0) == {"checkpoint_every": 200}


def test_large_images_are_predicted_in_tiles():
    assert chosen(input_rules.tiles, resize_mode="native") == {}
    assert chosen(input_rules.tiles, make_facts(size=(2000, 3000)), min_size=2000, max_size=3000) == {}
    large = make_facts(size=(2000, 3000), sides=(15, 15))
    found = chosen(input_rules.tiles, large, resize_mode="native")
    assert found["tile_size"] == 1536
    assert found["tile_overlap"] >= 15


def test_a_recipe_runs_every_rule_and_leaves_what_the_user_gave():
    given = {"crop_size": 192, "steps": 50, "learning_rate": 0.5, "horizontal_flip": False}
    recipe = make_recipe(make_facts(images=30), CPU, IMAGENET, Config().replace(**given), given)
    names = [choice.name for choice in recipe.choices]
    assert len(names) == len(set(names))
    assert not set(names) & set(given)
    assert recipe.config.data.crop_size == 192
    assert recipe.config.train.steps == 50
    assert recipe.config.train.ema_decay == 0.9  # a tenth of the given steps
    assert max(recipe.config.model.anchor_sizes) <= 192
    for choice in recipe.choices:
        assert choice.reason
        assert f"--{choice.name}" in recipe.text().replace("--no", "--")
    assert all(rule.__doc__ for rule in RULES)


@pytest.mark.parametrize("machine", [CPU, GPU, Machine(0, 1.0)])
@pytest.mark.parametrize("start", [IMAGENET, COCO, NONE])
@pytest.mark.parametrize(
    "facts",
    [
        make_facts(each=0),
        make_facts(images=1, each=1),
        make_facts(sides=(1, 1)),
        make_facts(sides=(3000, 4000), size=(3000, 4000), each=1),
        make_facts(size=(20, 30), sides=(5, 5)),
        make_facts(sides=(2, 600), size=(2000, 3000)),
    ],
    ids=["none", "one", "dots", "whole", "tiny", "lines"],
)
def test_any_set_has_a_possible_recipe(facts, start, machine):
    recipe = make_recipe(facts, machine, start, Config())  # Config.replace checks every setting
    assert recipe.text().count("\n") + 1 >= len(recipe.choices)


def test_a_flagfile_of_a_recipe_holds_its_settings_and_reasons(tmp_path):
    recipe = make_recipe(make_facts(), CPU, NONE, Config().replace(train_annotations="a.json"), {"train_annotations"})
    text = recipe.flagfile([("train_annotations", "a.json")])
    lines = text.splitlines()
    assert lines[0] == "--train_annotations=a.json"
    for choice in recipe.choices:
        assert lines[lines.index(rules_flag(choice)) - 1] == f"# {choice.reason}"
    assert "get better ones" in recipe.text()


def rules_flag(choice):
    from kmaskrcnn.recipe.recipe import flag_text

    return flag_text(choice.name, choice.value)


@pytest.mark.parametrize(
    ("kind", "contrast", "color"), [("photograph", 0.2, 0.1), ("gray", 0.2, 0.0), ("faint", 0.01, 0.0)]
)
def test_the_look_of_the_images_is_measured(kind, contrast, color, tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for number in range(3):
        coarse = rng.integers(0, 256, (8, 8, 3 if kind == "photograph" else 1))
        pixels = np.broadcast_to(coarse, (8, 8, 3)).repeat(12, axis=0).repeat(12, axis=1)
        if kind == "faint":
            pixels = 120 + pixels // 60
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
    objects = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [8, 8, 30, 30], "segmentation": [SQUARE], "area": 900}
    ]
    tree = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "set.json").write_text(json.dumps(tree))
    dataset = load_coco(tmp_path / "set.json")
    facts = facts_of(dataset)
    assert (facts.contrast > contrast) == (kind != "faint")
    assert facts.color > color if kind == "photograph" else facts.color == pytest.approx(0, abs=1e-9)
    for number in range(3):  # an image that is broken is left to the training, which names it
        (tmp_path / f"{number}.png").write_bytes(b"")
    assert np.isnan(facts_of(dataset).contrast)
