"""--dtype=auto: what is faster is taken, and kept."""

import pytest

from kmaskrcnn import precision


@pytest.fixture
def speed(monkeypatch):
    """Let a measurement find bfloat16 so many times as fast as float32."""

    def find(value):
        monkeypatch.setattr(precision, "bfloat16_speed", lambda: value)

    return find


def test_bfloat16_only_where_it_is_faster(speed):
    for value, dtype in ((0.2, "float32"), (1.1, "float32"), (1.9, "mixed_bfloat16")):
        speed(value)
        assert precision.resolve_dtype("auto") == dtype
        assert precision.resolve_dtype("mixed_float16") == "mixed_float16"


def test_explicit_bfloat16_where_it_is_slower_is_told_with_the_ratio(speed):
    speed(0.2)
    assert "5.0 times slower" in precision.slow_bfloat16("mixed_bfloat16")
    assert not precision.slow_bfloat16("float32")
    speed(1.5)
    assert not precision.slow_bfloat16("mixed_bfloat16")


def test_the_measurement_is_a_ratio_and_taken_once():
    first = precision.bfloat16_speed()
    assert 0.01 < first < 100
    assert precision.bfloat16_speed() == first
    assert precision.bfloat16_speed.cache_info().misses == 1
