"""Learning rates against the published formulas."""

import math

import pytest

from kmaskrcnn.config import Config
from kmaskrcnn.training.schedules import learning_rate


def _train(**settings):
    return Config().replace(**settings).train


def test_step_schedule_with_warmup_is_detectron2s():
    config = _train(learning_rate=0.02, warmup_steps=1000, warmup_factor=0.001, schedule="step", steps=90000)
    assert learning_rate(config, 0, 0.0) == pytest.approx(0.02 * 0.001)
    assert learning_rate(config, 500, 500 / 90000) == pytest.approx(0.02 * (0.001 * 0.5 + 0.5))
    assert learning_rate(config, 1000, 1000 / 90000) == pytest.approx(0.02)
    assert learning_rate(config, 59999, 59999 / 90000) == pytest.approx(0.02)
    assert learning_rate(config, 60001, 60001 / 90000) == pytest.approx(0.002)
    assert learning_rate(config, 80001, 80001 / 90000) == pytest.approx(0.0002)


def test_cosine_ends_at_zero_and_halves_in_the_middle():
    config = _train(learning_rate=1.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(config, 5, 0.5) == pytest.approx(0.5)
    assert learning_rate(config, 5, 0.25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(config, 5, 1.2) == pytest.approx(0.0)


def test_linear_scaling_rule():
    config = _train(learning_rate=0.02, batch_size=4, reference_batch_size=16, warmup_steps=0, schedule="constant")
    assert learning_rate(config, 7, 0.9) == pytest.approx(0.005)
