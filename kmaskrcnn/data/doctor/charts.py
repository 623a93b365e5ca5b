"""Bar charts as SVG text, for a page that needs nothing beside itself."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

_COLOR = "#3b6ea5"


def bars(labels: Sequence[str], values: Sequence[float], title: str, width: int = 520) -> str:
    """Horizontal bars, one a label, with their values."""
    rows, top = len(labels), 8
    left = min(220, 12 + 7 * max((len(label) for label in labels), default=0))
    height, most = top + 20 * rows + 4, max([*values, 1e-9])
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}">']
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        y, length = top + 20 * i, (width - left - 70) * value / most
        text = html.escape(label if len(label) < 30 else label[:28] + "…")
        parts.append(f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{text}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{max(length, 0.5):.1f}" height="15" fill="{_COLOR}"/>')
        parts.append(f'<text x="{left + length + 5:.1f}" y="{y + 12}">{value:g}</text>')
    return "".join([*parts, "</svg>"])


def histogram(
    values: np.ndarray, edges: np.ndarray | Sequence[float], title: str, axis: str, width: int = 460, height: int = 200
) -> str:
    """Upright bars of the numbers of values between edges; those beyond the ends are counted in the end bars."""
    limits = np.asarray(edges, np.float64)
    inside = np.clip(values, limits[0], np.nextafter(limits[-1], limits[0]))
    counts, _ = np.histogram(inside, limits)
    left, bottom, top = 46, 40, 14
    most, step = max(int(counts.max(initial=0)), 1), (width - left - 10) / len(counts)
    parts = [f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{html.escape(title)}">']
    for share in (0, 0.5, 1):
        y = height - bottom - (height - bottom - top) * share
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 10}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{most * share:g}</text>')
    every = max(1, len(counts) // 8)
    for i, count in enumerate(counts.tolist()):
        bar = (height - bottom - top) * count / most
        tip = f"<title>{limits[i]:g} to {limits[i + 1]:g}: {count}</title>"
        x, y = left + i * step + 0.5, height - bottom - bar
        box = f'x="{x:.1f}" y="{y:.1f}" width="{max(step - 1, 0.5):.1f}" height="{bar:.1f}"'
        parts.append(f'<rect {box} fill="{_COLOR}">{tip}</rect>')
        if i % every == 0:
            parts.append(
                f'<text x="{left + i * step:.1f}" y="{height - bottom + 14}" text-anchor="middle">{limits[i]:g}</text>'
            )
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{html.escape(axis)}</text>')
    return "".join([*parts, "</svg>"])
