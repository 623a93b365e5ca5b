"""oneDNN is on before TensorFlow starts, and frozen weights find what others find."""

import os
import platform

import numpy as np
import pytest

from kmaskrcnn import onednn
from kmaskrcnn.errors import ConfigError
from kmaskrcnn.programs.cli import COMMANDS
from tests.conftest import make_batch
from tests.processes import run_python

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN is set on x86-64 alone")
NAMES = ("TF_ENABLE_ONEDNN_OPTS", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS")


@pytest.mark.parametrize("given", [None, "0"])
@pytest.mark.parametrize("command", COMMANDS)
def test_programs_set_it_before_tensorflow_starts(command, given, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    code = f"""
import os, sys
from kmaskrcnn.programs import cli

def program(name, arguments):
    print(*(os.environ.get(name) for name in {NAMES}), "tensorflow" in sys.modules)

module, function, _ = cli.COMMANDS[{command!r}]
setattr(cli.importlib.import_module(f"kmaskrcnn.programs.{{module}}"), function, program)
cli.run_command({command!r}, [])
"""
    result = run_python("-c", code)
    frozen = "1" if command in ("evaluate", "predict", "serve", "batch") else "None"  # what trains must not have it
    assert result.stdout.split() == [given or "1", given or frozen, "False"], result.stderr


def test_what_is_given_counts(monkeypatch):
    monkeypatch.setenv(NAMES[0], "0")
    monkeypatch.delenv(NAMES[1], raising=False)
    onednn.set_up(frozen_weights=False)
    assert (os.environ[NAMES[0]], NAMES[1] in os.environ) == ("0", False)


# Two models in one process, one after the other as in a server that takes a new version; then the first one again.
FIND = """
import os
import sys
import keras
import numpy as np
import tensorflow as tf
from kmaskrcnn import MaskRCNN, Predictor
from kmaskrcnn.config import Config
from kmaskrcnn.export.saved_model import export_saved_model
from kmaskrcnn.results.labels import Labels
from tests.conftest import TINY

path, folder = sys.argv[1:]
keras.utils.set_random_seed(1)
config = Config().replace(resize_mode="native", score_threshold=0.0)
labels = Labels(tuple("abcdefgh"[: TINY["num_classes"]]), tuple(range(1, TINY["num_classes"] + 1)))
rng = np.random.default_rng(0)
sizes = ((96, 64), (64, 160), (96, 64))
pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
others = {"backbone": "mobilenet_v2", "backbone_norm": "bn", "mask_point_rend": True}
served, found = [], []
for i, settings in enumerate(({"backbone_norm": "frozen_bn"}, others)):
    model = MaskRCNN(**TINY | {"score_threshold": 0.0} | settings)
    weights = f"{folder}.{i}.weights.h5"
    if os.path.exists(weights):
        model.load_weights(weights)
    else:
        model.save_weights(weights)
        export_saved_model(model, config, labels, f"{folder}/{i}", compact_masks=i == 1)
    served.append(tf.saved_model.load(f"{folder}/{i}/1"))
predictor = Predictor(model, config, labels)
for i in (0, 1, 0):
    for picture in pictures:
        if i:
            result = predictor.predict(picture)
            found += [result.boxes, result.scores, result.classes, result.mask(0)]
        result = served[i].signatures["serving_tensor"](images=tf.constant(picture[None]))
        found += [result[name].numpy() for name in sorted(result)]
    result = served[i].signatures["serving_tensor"](images=tf.constant(np.stack([pictures[0], pictures[2]])))
    found += [result[name].numpy() for name in sorted(result)]
np.savez(path, *found)
"""


def test_frozen_weights_find_what_others_find(tmp_path):
    found = []
    for frozen in "01":
        path = tmp_path / f"{frozen}.npz"
        environment = {"TF_ENABLE_ONEDNN_OPTS": "1", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": frozen}
        result = run_python("-c", FIND, path, tmp_path / "exported", **environment)
        assert result.returncode == 0, result.stderr
        with np.load(path) as file:
            found.append([file[name] for name in file])
    assert len(found[0]) == len(found[1]) > 50
    for own, frozen in zip(*found, strict=True):
        np.testing.assert_allclose(own, frozen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("given", ["1", "True"])
def test_nothing_is_trained_with_frozen_weights(given, tiny_model, monkeypatch):
    found = tiny_model(make_batch())  # before, since TensorFlow looks at the variable once
    monkeypatch.setenv(NAMES[1], given)
    assert found
    with pytest.raises(ConfigError, match=f"{NAMES[1]}={given} is for programs that train nothing"):
        tiny_model(make_batch(), training=True)
    result = run_python("train.py", "--train_annotations=shapes", "--model_dir=never")
    assert result.returncode == 2
    assert result.stderr == f"error: {NAMES[1]}={given} is for programs that train nothing: unset it\n"


@pytest.mark.parametrize("given", ["0", "false", ""])
def test_weights_that_are_not_frozen_are_trained(given, monkeypatch):
    monkeypatch.setenv(NAMES[1], given)
    onednn.check_trainable()
