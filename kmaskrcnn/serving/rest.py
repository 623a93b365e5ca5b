"""TensorFlow Serving's REST bodies for a model with one input of encoded images."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

import numpy as np

from kmaskrcnn.export.answers import SIGNATURE
from kmaskrcnn.serving.runner import Outputs


def parse(body: bytes) -> tuple[list[bytes], bool]:
    """The encoded images of a request, and whether it was in rows; raises ValueError with the reason."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON Parse error: {str(error)[:200]}") from None
    if not isinstance(tree, dict):
        raise ValueError("the body must be an object with 'instances' or 'inputs'")
    if tree.get("signature_name", SIGNATURE) != SIGNATURE:
        raise ValueError(f"signature_name must be {SIGNATURE!r}")
    if ("instances" in tree) == ("inputs" in tree):
        raise ValueError("the body must have either 'instances' or 'inputs'")
    rows = "instances" in tree
    found = tree["instances"] if rows else tree["inputs"]
    if not rows and isinstance(found, dict) and "image_bytes" in found:
        found = found["image_bytes"]
    if not isinstance(found, list):
        raise ValueError("a list of images was expected, each {'b64': ...}")
    return [_image(entry) for entry in found], rows


def _image(entry: Any) -> bytes:
    if isinstance(entry, dict) and set(entry) == {"image_bytes"}:
        entry = entry["image_bytes"]
    if not (isinstance(entry, dict) and isinstance(entry.get("b64"), str)):
        raise ValueError("an image must be {'b64': ...}")
    try:
        return base64.b64decode(entry["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("an image is not in base64") from None


def format_answer(outputs: Outputs, rows: bool) -> bytes:
    """The body of an answer."""
    lists = {name: _listed(name, values) for name, values in outputs.items()}
    if not rows:
        return json.dumps({"outputs": lists}).encode()
    count = len(next(iter(lists.values())))
    return json.dumps(
        {"predictions": [{name: values[i] for name, values in lists.items()} for i in range(count)]}
    ).encode()


def format_error(words: str) -> bytes:
    """The body of a refusal."""
    return json.dumps({"error": words}).encode()


def _listed(name: str, values: np.ndarray) -> list:
    if values.dtype != object:
        return values.tolist()
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in values]
    return [value.decode(errors="replace") for value in values]
