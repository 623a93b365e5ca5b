"""The wheel: what is in it, and that it works from another directory than the checkout; what errors of modules say."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def build_wheel(source, folder):
    """The wheel of a folder with a pyproject.toml."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", str(source)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_package_recipes_and_license(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    recipes = {f"kmaskrcnn/configs/{path.name}" for path in (ROOT / "configs").glob("*.flags")}
    assert recipes and recipes <= set(names)
    assert {"kmaskrcnn/py.typed", "kmaskrcnn/model.py"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: tensorflow" in metadata


def test_the_oldest_versions_are_those_that_the_ranges_begin_with():
    def pairs(name):
        lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        return {r.name: r.specifier for r in map(Requirement, lines)}

    oldest = {name: next(iter(s)).version for name, s in pairs("requirements-oldest.txt").items()}
    for name, ranges in pairs("requirements.txt").items():
        (begin,) = (s.version for s in ranges if s.operator == ">=")
        assert Version(oldest[name]) == Version(begin), name


def test_errors_below_the_commands_name_arguments_and_not_flags():
    found, raised = [], 0
    for path in (ROOT / "kmaskrcnn").rglob("*.py"):
        if "programs" in path.parts:
            continue
        for error in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)):
            texts = [n.value for n in ast.walk(error) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            message = re.sub(r"`[^`]*`", "", "".join(texts))  # a whole command may hold a flag
            raised += 1
            if re.search(r"(?<![\w-])--\w", message):
                found.append(f"{path}:{error.lineno}: {message}")
    assert raised > 300 and not found, "\n".join(found)


def test_the_installed_command_finds_its_recipes(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={target}", str(wheel)]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": str(target)}

    def run(*arguments):
        command = [str(target / "bin" / "kmaskrcnn"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert "train a model on your images" in run("--help").stdout
    train = run("train", "--flagfile=quickstart.flags", f"--model_dir={tmp_path}/m", "--num_classes=0")
    assert train.returncode == 2
    assert [line for line in train.stderr.splitlines() if line.startswith("error")] == [
        "error: num_classes=0: must be above 0"
    ]
    near = run("trian")
    assert near.returncode == 2 and "did you mean 'train'" in near.stderr
    missing = run("train", "--flagfile=none.flags")
    assert missing.returncode == 2 and "nuclei.flags" in missing.stderr
