"""A small model, exported once for all the tests of this folder."""

from types import SimpleNamespace

import keras
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.export.saved_model import export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.results.labels import Labels
from tests.conftest import TINY
from tests.export.images import encode, picture

LABELS = Labels(("apple", "pear", "plum"), (3, 10, 20))
MAX_PIXELS = 300 * 300


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Model, predictor and the folder of its first version."""
    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0}
    model = MaskRCNN(**settings)
    sizes = {"min_size": 64, "max_size": 128}
    config = Config().replace(**settings, **sizes)
    base = tmp_path_factory.mktemp("serving") / "fruits"
    (base / "7").mkdir(parents=True)
    (base / "part-8").mkdir()
    (base / "part-8" / "left by a run that was stopped").touch()
    warmup = [encode(picture()), encode(picture(90, 60, 1), "JPEG")]
    version = export_saved_model(model, config, LABELS, base, warmup, MAX_PIXELS, full_size_masks=True)
    return SimpleNamespace(
        model=model,
        config=config,
        predictor=Predictor(model, config, LABELS),
        base=base,
        version=version,
        warmup=warmup,
    )
