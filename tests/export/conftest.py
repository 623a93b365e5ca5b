"""A small model, exported once for all the tests of this folder."""

import io
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.export.saved_model import export_saved_model
from kmaskrcnn.labels import Labels
from kmaskrcnn.predict import Predictor
from tests.conftest import TINY

LABELS = Labels(("apple", "pear", "plum"), (3, 10, 20))
MAX_PIXELS = 300 * 300


def picture(height=70, width=110, seed=0):
    """Smooth colours, as lossy formats keep them."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels, image_format="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Model, predictor and the folder of its first version."""
    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0}
    model = MaskRCNN(**settings)
    sizes = {"min_size": 64, "max_size": 128}
    config = Config().replace(**settings, **sizes)
    base = tmp_path_factory.mktemp("serving") / "fruits"
    warmup = {"a": encode(picture()), "b": encode(picture(90, 60, 1), "JPEG")}
    version = export_saved_model(model, config, LABELS, base, warmup, MAX_PIXELS, full_size_masks=True)
    return SimpleNamespace(
        model=model,
        config=config,
        predictor=Predictor(model, config, LABELS),
        base=base,
        version=version,
        warmup=warmup,
    )
