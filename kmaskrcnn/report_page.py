"""The page of a report, of data or of an evaluation: one HTML file that holds its images and charts."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

_COLOR = "#3b6ea5"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0.2em } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
h3 { font-size: 1em; margin: 0.6em 0 } nav a { margin-right: 1em }
table { border-collapse: collapse; margin: 0.8em 0 } th { border-bottom: 1px solid #999 }
td, th { padding: 0.25em 0.7em; text-align: left; vertical-align: top }
td.n, .numbers td + td, .numbers th + th { text-align: right } .numbers td.text { text-align: left }
tr:nth-child(even) { background: #f5f6f8 } .all td { font-weight: 600 }
code, pre { font: 13px ui-monospace, monospace } pre { background: #f5f6f8; padding: 1em; overflow-x: auto }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start } .columns { columns: 2 480px }
figure { margin: 0 0 1em; flex: 0 1 560px; break-inside: avoid } .small figure { flex: 0 1 360px }
figure img { width: 100% }
figcaption { font-size: 0.9em; color: #444 }
.error, .down { color: #b3261e } .warning { color: #9a6700 } .up { color: #177a36 } .note { color: #666 }
.error, .warning { font-weight: 600 } td.example { font-size: 13px; overflow-wrap: anywhere }
.key { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 1em; vertical-align: -0.1em }
details ul { margin: 0.3em 0; padding-left: 1.2em; font-size: 13px; overflow-wrap: anywhere }
"""


def page(title: str, headline: str, sections: Mapping[str, str]) -> str:
    """The whole page.

    Args:
        title: plain text.
        headline: HTML below the title.
        sections: HTML by heading.
    """
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in anchors.items())
    body = "".join(f'<h2 id="{anchors[name]}">{name}</h2>{content}' for name, content in sections.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{headline}<nav>{links}</nav>{body}</body></html>\n"
    )


def row(parts: Iterable[str], kind: str = "row") -> str:
    """Parts beside each other; kind: "row", "row small" for small figures, or "columns" where heights differ."""
    return f'<div class="{kind}">{"".join(parts)}</div>'


def figure(source: str, caption: str) -> str:
    """An image, by its data URL, and a line of text below it."""
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def jpeg(picture: Image.Image, side: int) -> str:
    """An image of at most `side` pixels as a data URL."""
    picture = picture.copy()
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return _data_url("image/jpeg", data.getvalue())


def new_chart(width: float = 6, height: float = 4.5) -> tuple[Any, Any]:
    """Matplotlib's figure, of a size in inches, and its axes."""
    # Imported here, since reports alone draw charts; without pyplot nothing looks for a screen.
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots()


def chart(drawing: Any) -> str:
    """Matplotlib's figure as a data URL; its text stays text, which the browser has the fonts for."""
    from matplotlib import rc_context

    data = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kmaskrcnn"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        drawing.savefig(data, format="svg", metadata={"Date": None})
    return _data_url("image/svg+xml", data.getvalue())


def bars(labels: Sequence[str], values: Sequence[float]) -> str:
    """Horizontal bars from the top down, one a label, with their values."""
    drawing, axes = new_chart(height=max(1.2, 0.25 * len(labels) + 0.6))
    shown = axes.barh(range(len(labels)), values, color=_COLOR)
    axes.bar_label(shown, fmt="{:g}", padding=3, fontsize=8)
    names = [label if len(label) < 30 else f"{label[:28]}…" for label in labels]
    axes.set_yticks(range(len(labels)), names, fontsize=8)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    return chart(drawing)


def histogram(values: np.ndarray, edges: np.ndarray | Sequence[float], axis: str) -> str:
    """Upright bars of the numbers of values between edges; those beyond the ends are counted in the end bars."""
    limits = np.asarray(edges, np.float64)
    counts, _ = np.histogram(np.clip(values, limits[0], np.nextafter(limits[-1], limits[0])), limits)
    drawing, axes = new_chart(height=3)
    axes.bar(range(len(counts)), counts, width=0.95, align="edge", color=_COLOR)
    every = max(1, len(counts) // 8)
    axes.set_xticks(range(0, len(limits), every), [f"{limit:g}" for limit in limits[::every]])
    axes.set(xlabel=axis)
    axes.grid(axis="y", alpha=0.3)
    return chart(drawing)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
