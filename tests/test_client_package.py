"""The distribution of the clients alone: complete without the rest of the package, and without TensorFlow."""

import ast
import json
import posixpath
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest

from tests.export.test_client import Server, answer
from tests.test_package import ROOT, build_wheel

PROJECT = tomllib.loads((ROOT / "client" / "pyproject.toml").read_text())
INCLUDED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
MODULES = {target: ROOT / "client" / source for source, target in INCLUDED.items() if target.endswith(".py")}
# What is imported where it is used, with words that name the extra.
OPTIONAL = {"ai_edge_litert", "google", "grpc", "supervision"}

# Runs in an environment where the client alone is installed.
PROGRAM = """
import importlib.util, json, sys
for name in ("tensorflow", "keras", "kmaskrcnn", "matplotlib", "grpc"):
    assert importlib.util.find_spec(name) is None, name
from kmaskrcnn_client import GrpcClient, Labels, LiteRTClient, RestClient
from PIL import Image
import numpy as np
Image.new("RGB", (200, 100)).save("photo.png")
prediction = RestClient(sys.argv[1], "fruits", Labels(("apple", "pear"), (1, 2))).predict("photo.png")
drawn = prediction.draw(np.zeros((100, 200, 3), np.uint8))
refusals = []
for refused in (
    lambda: LiteRTClient("model.tflite"),
    lambda: GrpcClient("localhost:1", "fruits", Labels(("apple",), (1,))),
    lambda: RestClient(sys.argv[1], "fruits", Labels(("apple", "\\u68a8"), (1, 2))).predict("photo.png").draw(
        np.zeros((100, 200, 3), np.uint8)
    ),
):
    try:
        refused()
    except ImportError as error:
        refusals.append(str(error))
coco = prediction.to_coco(17)
print(json.dumps({"names": prediction.names, "boxes": prediction.boxes.tolist(), "area": int(prediction.mask(0).sum()),
                  "coco": coco[0]["category_id"], "drawn": max(drawn.size), "refusals": refusals}))
"""


def imports(tree):
    """(level, module, names) of every import in a module, also those within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def test_its_modules_import_nothing_that_it_lacks():
    dependencies = {name.split(">")[0] for name in PROJECT["project"]["dependencies"]}
    provided = {"numpy": "numpy", "pillow": "PIL", "pycocotools": "pycocotools"}
    allowed = {provided[name] for name in dependencies} | OPTIONAL | sys.stdlib_module_names
    assert len(MODULES) > 10
    for target, source in MODULES.items():
        for level, module, names in imports(ast.parse(source.read_text())):
            if not level:
                assert module.split(".")[0] in allowed, (target, module)
                continue
            folder = posixpath.dirname(target)
            for _ in range(level - 1):
                folder = posixpath.dirname(folder)
            path = posixpath.join(folder, *module.split(".")) if module else folder
            found = {f"{path}.py"} if module else {f"{path}/{name}.py" for name in names}
            assert found <= MODULES.keys(), (target, module)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    return {name: build_wheel(ROOT / name, tmp_path_factory.mktemp("wheel")) for name in ("client", ".")}


def test_it_shares_no_file_with_the_package(wheels):
    """Either can be installed and removed beside the other."""
    names = {name: set(zipfile.ZipFile(wheel).namelist()) for name, wheel in wheels.items()}
    assert "kmaskrcnn_client/export/client.py" in names["client"] and "kmaskrcnn/model.py" in names["."]
    assert not names["client"] & names["."]


@pytest.mark.slow
def test_it_reads_a_prediction_where_tensorflow_is_not_installed(wheels, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    probe = subprocess.run([*install, *PROJECT["project"]["dependencies"]], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"pip reaches no registry: {probe.stderr.strip().splitlines()[-1]}")
    subprocess.run([*install, wheels["client"]], check=True)

    def run(code, *arguments):
        command = [python, "-c", code, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert result.returncode == 0, result.stderr
        return result.stdout

    with Server(answer()) as server:
        found = json.loads(run(PROGRAM, server.url))
    refusals = found.pop("refusals")
    assert found.pop("area") > 0 and found.pop("drawn") >= 200
    assert found.pop("boxes") == [pytest.approx([10, 40, 50, 120])]
    assert found == {"names": ["pear"], "coco": 2}
    assert [words.split("pip install ")[1].split()[0].strip("'") for words in refusals] == [
        "ai-edge-litert",
        "grpcio",
        "matplotlib",
    ]

    # Beside the whole package, and after that has gone again.
    subprocess.run([*install, "--no-deps", wheels["."]], check=True)
    both = "import kmaskrcnn.export.client, kmaskrcnn_client; print(kmaskrcnn_client.RestClient.__module__)"
    assert run(both) == "kmaskrcnn_client.export.client\n"
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "kmaskrcnn"], check=True)
    run("import kmaskrcnn_client")
