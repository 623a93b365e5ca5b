"""Runs that are killed come to the bits of runs that are not."""

import pytest

from benchmarks.faults import kills, kills_workers


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kills, kills_workers])
def test_kills_change_no_bit(tmp_path, kind):
    for row in kind.run(3, tmp_path):
        assert row.ok, row
