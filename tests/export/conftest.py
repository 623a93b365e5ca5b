"""A small model, exported once for all the tests of this folder."""

import os
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.weight_files.download import locked
from tests.conftest import TINY
from tests.export.images import encode, picture

LABELS = Labels(("apple", "pear", "plum"), (3, 10, 20))
MAX_PIXELS = 300 * 300


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Model, predictor and the folder of its first version, which one of the test processes writes for all."""
    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0}
    model = MaskRCNN(**settings)
    config = Config().replace(**settings, min_size=64, max_size=128)
    warmup = [encode(picture()), encode(picture(90, 60, 1), "JPEG")]
    root = tmp_path_factory.getbasetemp()
    base = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "serving" / "fruits"
    base.parent.mkdir(exist_ok=True)
    with locked(base):
        if not base.exists():
            (base / "7").mkdir(parents=True)
            (base / "part-8").mkdir()
            (base / "part-8" / "left by a run that was stopped").touch()
            export_saved_model(model, config, LABELS, base, warmup, MAX_PIXELS, full_size_masks=True)
    return SimpleNamespace(
        model=model,
        config=config,
        predictor=Predictor(model, config, LABELS),
        base=base,
        version=base / "8",
        warmup=warmup,
    )


@pytest.fixture(scope="session")
def own_client(exported):
    return SavedModelClient(exported.version)


@pytest.fixture(scope="session")
def loaded(own_client):
    return own_client._model


def assert_same(ours, theirs, atol=1e-4):
    assert (ours.height, ours.width, len(ours)) == (theirs.height, theirs.width, len(theirs))
    assert len(ours) > 0
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=atol)
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_allclose(ours.mask_probabilities, theirs.mask_probabilities, atol=atol)
    assert (ours.mask_scores is None) == (theirs.mask_scores is None)
    if ours.mask_scores is not None:
        np.testing.assert_allclose(ours.mask_scores, theirs.mask_scores, atol=atol)
