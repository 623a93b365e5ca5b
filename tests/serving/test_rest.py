"""Bodies of answers, without a server."""

import base64
import json

import numpy as np
import pytest

from kmaskrcnn.serving import rest


def test_the_bytes_of_an_answer_do_not_depend_on_the_order_of_the_outputs():
    outputs = {"b": np.arange(4, dtype=np.float32).reshape(2, 2), "a": np.array([1, 2], np.int32)}
    backwards = dict(reversed(outputs.items()))
    for form in (rest.AnswerForm(), rest.AnswerForm(rows=False)):
        assert rest.format_answer(outputs, form) == rest.format_answer(backwards, form)
    assert json.loads(rest.format_answer(outputs, rest.AnswerForm()))["predictions"] == [
        {"a": 1, "b": [0.0, 1.0]},
        {"a": 2, "b": [2.0, 3.0]},
    ]


def test_numbers_come_back_with_all_their_bits():
    values = np.random.default_rng(0).random((2, 20, 7, 7), np.float32)
    values[0, 0, 0, :3] = (0.0, 1e-30, np.nextafter(np.float32(1), np.float32(0)))
    outputs = {"detection_masks": values[:, ::2], "image_errors": np.array([b"", b"no image"], object)}
    rows = json.loads(rest.format_answer(outputs, rest.AnswerForm()))["predictions"]
    found = np.array([row["detection_masks"] for row in rows], np.float32)
    np.testing.assert_array_equal(found, values[:, ::2])
    assert [row["image_errors"] for row in rows] == ["", "no image"]


@pytest.mark.parametrize("entry", ["{}", "[]", "[0]", "0"])
def test_a_body_of_many_small_parts_is_refused_unparsed(entry, monkeypatch):
    body = b'{"instances": [' + b",".join([entry.encode()] * 10_000) + b"]}"
    monkeypatch.setattr(rest.json, "loads", lambda _: pytest.fail("parsed"))
    with pytest.raises(ValueError, match="the body has more parts than 16 images need"):
        rest.parse(body, 16)


def test_as_many_images_as_may_be_are_parsed():
    image = base64.b64encode(bytes(range(256)) * 40).decode()
    for tree in (
        {"instances": [{"image_bytes": {"b64": image}}] * 2, "signature_name": "serving_default"},
        {"inputs": {"image_bytes": [{"b64": image}] * 2}, "signature_name": "serving_default"},
    ):
        assert rest.parse(json.dumps(tree, indent=2).encode(), 2)[0] == [bytes(range(256)) * 40] * 2
