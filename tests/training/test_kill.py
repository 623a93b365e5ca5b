"""A run that is killed ten times comes to the bits of one that is not."""

import subprocess
import sys

import pytest

from benchmarks.replicas import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_change_no_bit(tmp_path, workers):
    command = [sys.executable, "-m", "benchmarks.kill", f"--runs={tmp_path}", f"--workers={workers}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "10 kills" in result.stdout and "equal bit for bit" in result.stdout
