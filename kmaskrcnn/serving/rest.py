"""TensorFlow Serving's request and answer bodies for a model with one input of encoded images: JSON, and protobuf."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple

import numpy as np
import orjson

from kmaskrcnn.export.answers import SIGNATURE
from kmaskrcnn.serving.runner import Outputs

JSON, PROTOBUF = "application/json", "application/x-protobuf"

_PARTS_OF_AN_IMAGE = 16  # objects, lists and commas, generously


class AnswerForm(NamedTuple):
    """How a request wants its answer.

    Attributes:
        media_type: JSON or PROTOBUF.
        rows: in JSON an object an image, else one with all images of each output.
        names: the outputs that are wanted; (): all.
    """

    media_type: str = JSON
    rows: bool = True
    names: tuple[str, ...] = ()


def parse(body: bytes, max_images: int) -> tuple[list[bytes], AnswerForm]:
    """The encoded images of a request in JSON; raises ValueError with the reason."""
    # Parsed, a body of empty objects takes 25 times its memory, and no other thread runs. Base64 has none of these.
    if sum(map(body.count, (b"{", b"[", b","))) > _PARTS_OF_AN_IMAGE * (max_images + 4):
        raise ValueError(f"the body has more parts than {max_images} images need")
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
    return [_image(entry) for entry in found], AnswerForm(rows=rows)


def parse_protobuf(body: bytes, model_name: str) -> tuple[list[bytes], AnswerForm]:
    """The encoded images of a PredictRequest; raises ValueError with the reason, LookupError for another model."""
    from google.protobuf.message import DecodeError

    from kmaskrcnn.export import serving_protos

    try:
        request = serving_protos.PredictRequest.FromString(body)
    except DecodeError:
        raise ValueError("the body is not a PredictRequest") from None
    if request.model_spec.name != model_name:
        raise LookupError(f"the model here is {model_name!r}, not {request.model_spec.name[:200]!r}")
    if request.model_spec.signature_name not in ("", SIGNATURE):
        raise ValueError(f"signature_name must be {SIGNATURE!r}")
    return serving_protos.images_of(request), AnswerForm(PROTOBUF, names=tuple(request.output_filter))


def _image(entry: Any) -> bytes:
    if isinstance(entry, dict) and set(entry) == {"image_bytes"}:
        entry = entry["image_bytes"]
    if not (isinstance(entry, dict) and isinstance(entry.get("b64"), str)):
        raise ValueError("an image must be {'b64': ...}")
    try:
        return base64.b64decode(entry["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("an image is not in base64") from None


def format_answer(outputs: Outputs, form: AnswerForm, model_name: str = "", version: int = 0) -> bytes:
    """The body of an answer; raises ValueError where an output is wanted that there is not."""
    missing = [name for name in form.names if name not in outputs]
    if missing:
        raise ValueError(f"output_filter: there is no output {missing[0][:200]!r}")
    # By name: the order in which TensorFlow gives outputs differs from process to process.
    outputs = {name: outputs[name] for name in sorted(outputs) if name in form.names or not form.names}
    if form.media_type == PROTOBUF:
        from kmaskrcnn.export import serving_protos

        return serving_protos.predict_response(outputs, model_name, version).SerializeToString()
    # orjson takes arrays as they are, and writes of a float32 the digits that tell it and no more: masks as text in a
    # twentieth of the time and half the bytes of lists of Python's numbers.
    listed = {name: _listed(name, values) for name, values in outputs.items()}
    if not form.rows:
        return orjson.dumps({"outputs": listed}, option=orjson.OPT_SERIALIZE_NUMPY)
    count = len(next(iter(listed.values())))
    rows = [{name: values[i] for name, values in listed.items()} for i in range(count)]
    return orjson.dumps({"predictions": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def format_error(words: str) -> bytes:
    """The body of a refusal."""
    return json.dumps({"error": words}).encode()


def _listed(name: str, values: np.ndarray) -> np.ndarray | list:
    if values.dtype != object:
        return np.ascontiguousarray(values)
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(value).decode()} for value in values]
    return [value.decode(errors="replace") for value in values]
