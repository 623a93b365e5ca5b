"""An HTML page that holds its images and charts itself: the reports of the doctor and of an evaluation."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; } h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin: 0.6em 0; } nav a { margin-right: 1em; }
table { border-collapse: collapse; margin: 0.8em 0; } th, td { padding: 0.25em 0.7em; text-align: left; }
th { border-bottom: 1px solid #999; } td { vertical-align: top; overflow-wrap: anywhere; }
tr:nth-child(even) { background: #f5f6f8; } .numbers :is(td, th):not(:first-child), td.n { text-align: right; }
.all td, .error, .warning { font-weight: 600; } .up { color: #177a36; } .down, .error { color: #b3261e; }
.warning { color: #9a6700; } .note { color: #666; }
code, pre { font: 13px ui-monospace, monospace; } pre { background: #f5f6f8; padding: 1em; overflow-x: auto; }
.row { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start; }
figure { margin: 0 0 1em; flex: 1 1 360px; max-width: 580px; } figure img { width: 100%; }
figcaption { font-size: 0.9em; color: #444; }
.key { display: inline-block; width: 0.9em; height: 0.9em; margin: 0 0.3em 0 1em; vertical-align: -0.1em; }
details ul { margin: 0.3em 0; padding-left: 1.2em; font-size: 13px; }
"""


def page(title: str, headline: str, sections: Mapping[str, str]) -> str:
    """A page with links to its sections.

    Args:
        title: plain text.
        headline: HTML below it.
        sections: HTML by plain heading.
    """
    title = html.escape(title)
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    links = "".join(f'<a href="#{anchor}">{name}</a>' for name, anchor in anchors.items())
    body = "".join(f'<h2 id="{anchors[name]}">{name}</h2>{content}' for name, content in sections.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1>{headline}<nav>{links}</nav>{body}</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[str]) -> str:
    """A table with these headings, plain text, whose columns after the first hold numbers; rows are HTML."""
    return f'<table class="numbers"><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{"".join(rows)}</table>'


def row(parts: Iterable[str]) -> str:
    """Parts beside each other, as far as there is room."""
    return f'<div class="row">{"".join(parts)}</div>'


def image_figure(image: Image.Image, caption: str, side: int) -> str:
    """An image, made smaller where it is larger than `side`, above its caption (plain text)."""
    image.thumbnail((side, side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return _figure("image/jpeg", data.getvalue(), caption)


def chart_figure(chart: Any, caption: str) -> str:
    """A Matplotlib figure as SVG above its caption (plain text)."""
    data = io.BytesIO()
    chart.savefig(data, format="svg")
    return _figure("image/svg+xml", data.getvalue(), caption)


def new_chart(width: float = 6, height: float = 4.5) -> tuple[Any, Any]:
    """A Matplotlib figure and its axes; sizes in inches."""
    # Imported here, since only reports draw; without pyplot nothing looks for a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def bar_chart(labels: Sequence[str], values: Sequence[float]) -> Any:
    """Horizontal bars with their values, the first on top."""
    figure, axes = new_chart(6, 0.6 + 0.22 * max(len(labels), 3))
    bars = axes.barh(range(len(labels)), values, color="C0")
    axes.bar_label(bars, fmt="{:g}", padding=3, fontsize=8)
    axes.set_yticks(range(len(labels)), [name if len(name) < 30 else name[:28] + "…" for name in labels], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    return figure


def histogram(values: np.ndarray, edges: Sequence[float], label: str) -> Any:
    """The number of values between edges, in bars of one width; values beyond the ends are counted in the end bars."""
    edges = np.asarray(edges, np.float64)
    counts, _ = np.histogram(np.clip(values, edges[0], np.nextafter(edges[-1], edges[0])), edges)
    figure, axes = new_chart(6, 3)
    axes.bar(np.arange(len(counts)) + 0.5, counts, width=0.95, color="C0")
    ticks = np.arange(0, len(edges), max(1, len(edges) // 9))
    axes.set_xticks(ticks, [f"{edges[i]:g}" for i in ticks])
    axes.set_xlabel(label)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure


def _figure(kind: str, data: bytes, caption: str) -> str:
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt=""><figcaption>{html.escape(caption)}</figcaption></figure>'
