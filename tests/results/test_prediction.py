"""Predictions as objects."""

import numpy as np
import pytest

from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction


def test_a_prediction_without_masks_is_refused():
    with pytest.raises(ValueError, match="needs masks"):
        Prediction(8, 8, np.zeros((1, 4)), np.ones(1), np.ones(1, np.int32), None, Labels(("cell",), (1,)))
