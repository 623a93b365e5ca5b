"""The page of reports, and its charts."""

import base64
import warnings

import numpy as np

from kmaskrcnn.report_page import bars, figure, histogram, page


def _svg(source):
    head, data = source.split(",")
    assert head == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


def test_text_of_charts_is_text_in_any_script():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = _svg(bars(["梨", "apple"], [12, 3]))
    assert ">梨</text>" in drawn and ">apple</text>" in drawn and ">12</text>" in drawn


def test_the_same_numbers_give_the_same_chart():
    values, edges = np.array([1.0, 5.0, 99.0]), [0, 4, 8, 16]
    first = histogram(values, edges, "sizes")
    assert first == histogram(values, edges, "sizes")
    # What lies beyond an end is counted in its bar.
    assert first == histogram(np.array([-3.0, 4.0, 16.0]), edges, "sizes")
    assert first != histogram(np.array([1.0, 1.0, 99.0]), edges, "sizes")
    assert ">sizes</text>" in _svg(first)


def test_names_cannot_break_the_page():
    text = page("a <b>", "<p>one</p>", {"First part": figure("data:,", '"<script>')})
    assert "<title>a &lt;b&gt;</title>" in text and "<script>" not in text
    assert '<a href="#first-part">' in text and '<h2 id="first-part">' in text
