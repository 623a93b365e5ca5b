"""The model that comes with the package: opened by name, it finds nuclei."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from kmaskrcnn import MaskRCNN
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.weights.convert import converted_folder, starting_weights
from kmaskrcnn.weights.presets import SHIPPED, shipped_folder
from tests.processes import run_program


def nuclei(count=12, side=256, seed=0):
    """Bright ellipses apart from each other on a dark ground, as under a fluorescence microscope, and their masks."""
    rng = np.random.default_rng(seed)
    image, masks = Image.new("L", (side, side), 12), []
    cells = rng.permutation(16)[:count]
    for cell in cells:
        mask = Image.new("L", (side, side))
        center = np.array([cell % 4, cell // 4]) * 64 + 32 + rng.uniform(-8, 8, 2)
        radii = rng.uniform(9, 18, 2)
        ImageDraw.Draw(mask).ellipse([*(center - radii), *(center + radii)], fill=255)
        image.paste(int(rng.integers(90, 200)), mask=mask.filter(ImageFilter.GaussianBlur(1)))
        masks.append(np.asarray(mask) > 0)
    return np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(1)))] * 3, -1), masks


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_has_a_card_and_no_path_of_its_training(name):
    folder = shipped_folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 8e6
    card = (folder / "README.md").read_text()
    for part in ("Data", "License", "Recipe", "Scores", "Intended use", "Limits"):
        assert f"## {part}" in card
    config = json.loads((folder / "config.json").read_text())
    values = [value for group in config.values() if isinstance(group, dict) for value in group.values()]
    assert not [value for value in values if isinstance(value, str) and "/" in value]


def test_it_finds_nuclei():
    predictor = Predictor.from_directory(converted_folder("nuclei_mobilenet_v2"))
    assert predictor.labels.class_names == ("nucleus",)
    image, truth = nuclei()
    found = predictor.predict(image).select(0.5, [], 0)
    masks = [found.mask(i) for i in range(len(found))]
    best = [max((m & t).sum() / (m | t).sum() for m in masks) for t in truth]
    assert len(masks) == len(truth)
    assert min(best) > 0.7


def test_the_model_of_another_number_of_classes_starts_from_it(capsys):
    model = MaskRCNN.from_preset("nuclei_mobilenet_v2", num_classes=3)
    assert model.config.num_classes == 3
    assert "not taken: " in capsys.readouterr().out
    assert Path(starting_weights("nuclei_mobilenet_v2")) == shipped_folder("nuclei_mobilenet_v2")


def test_it_is_used_by_name_from_the_command_line(tmp_path):
    Image.fromarray(nuclei()[0]).save(tmp_path / "cells.png")
    result = run_program(
        "-m", "kmaskrcnn", "predict", "--preset=nuclei_mobilenet_v2", tmp_path / "cells.png", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "predictions" / "results.json").read_text())
    assert len(results if isinstance(results, list) else results["annotations"]) == 12
