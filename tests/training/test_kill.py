"""Runs that are killed come to the bits of runs that are not."""

import pytest

from benchmarks.faults import kills, kills_workers


@pytest.mark.slow
@pytest.mark.parametrize("part", kills.CONFIGURATIONS)
def test_kills_change_no_bit(tmp_path, part):
    for row in kills.run(3, tmp_path, part):
        assert row.ok, row


@pytest.mark.slow
def test_kills_of_workers_change_no_bit(tmp_path):
    for row in kills_workers.run(3, tmp_path):
        assert row.ok, row
