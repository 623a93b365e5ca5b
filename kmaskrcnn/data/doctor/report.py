"""The doctor's report: one HTML page that holds its images and charts itself."""

from __future__ import annotations

import html
import os

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config, ModelConfig
from kmaskrcnn.data.doctor.examine import Examined
from kmaskrcnn.data.doctor.statistics import Coverage, Statistics, coverage, measure
from kmaskrcnn.data.sets.defects import DEFECTS, ERROR, NOTE, WARNING
from kmaskrcnn.data.sets.masks import mask_frame, resample_area
from kmaskrcnn.errors import counted
from kmaskrcnn.report_page import bars, figure, histogram, jpeg, page, row
from kmaskrcnn.results.draw import draw_instances

_SAMPLES, _SAMPLE_SIDE, _MASK_CELLS = 12, 560, 112
_MOST_CLASSES, _MOST_EXAMPLES = 60, 10
_SIZE_EDGES = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)


def report_page(examined: Examined, val: Examined | None, config: Config, flag_lines: list[str], seed: int = 0) -> str:
    """The page as HTML text.

    Args:
        examined: the training set; val: the validation set, if there is one.
        config: the recipe, whose sizes and anchors are those that the boxes are held against.
        flag_lines: the suggested flagfile, a line each.
        seed: of the draw of sample images.
    """
    statistics = measure(examined, config.data)
    sections = {
        f"Findings in the {name}": _summary(one)
        for name, one in (("training set", examined), ("validation set", val))
        if one
    }
    sections |= {
        "What the training set holds": _charts(statistics),
        "Anchors": _anchors(statistics, config),
        "Suggested flagfile": "<pre>" + html.escape("\n".join(flag_lines)) + "</pre>",
        "Samples": row(_samples(examined, seed), "row small"),
    }
    return page(f"Data report: {os.path.basename(examined.source) or examined.source}", "", sections)


def _summary(one: Examined) -> str:
    findings = one.findings
    crowd = sum(a.record["iscrowd"] for a in one.annotations)
    lines = [
        f"<p><code>{html.escape(one.source)}</code>: {counted(one.counts[0], 'image')} and "
        f"{counted(one.counts[1], 'annotation')} by its files; "
        f"{len(one.images)} and {len(one.annotations)} ({crowd} crowd) can be kept, "
        f"of {counted(len(one.categories), 'class', 'classes')}. "
        + ", ".join(
            f"<span class={grade}>{counted(findings.number(grade), grade)}</span>" for grade in (ERROR, WARNING, NOTE)
        )
        + ".</p>",
    ]
    counts = findings.counts()
    if counts:
        lines.append("<table><tr><th>severity<th>defect<th>count<th>a repaired copy<th>examples</tr>")
        for grade in (ERROR, WARNING, NOTE):
            for code in (c for c in counts if DEFECTS[c].grade == grade):
                items = [html.escape(f"{f.place}: {f.detail}") for f in findings.of(code)[:_MOST_EXAMPLES]]
                more = [f"... and {counts[code] - len(items)} more"] if counts[code] > len(items) else []
                rest = "".join(f"<li>{item}" for item in items[1:] + more)
                rest = f"<details><summary>more</summary><ul>{rest}</ul></details>" if rest else ""
                lines.append(
                    f"<tr><td class={grade}>{grade}<td><code>{code}</code><br>{html.escape(DEFECTS[code].title)}"
                    f"<td class=n>{counts[code]}<td>{html.escape(DEFECTS[code].repair)}"
                    f"<td class=example>{items[0]}{rest}</tr>"
                )
        lines.append("</table>")
    return "".join(lines)


def _charts(statistics: Statistics) -> str:
    pairs = sorted(zip(statistics.class_counts, statistics.class_names, strict=True), reverse=True)
    shown, rest = pairs[:_MOST_CLASSES], pairs[_MOST_CLASSES:]
    labels, counts = [name for _, name in shown], [count for count, _ in shown]
    if rest:
        labels, counts = [*labels, f"{len(rest)} more"], [*counts, sum(count for count, _ in rest)]
    heights, widths = statistics.boxes[:, 2] - statistics.boxes[:, 0], statistics.boxes[:, 3] - statistics.boxes[:, 1]
    ratio = np.log2(np.maximum(heights, 1e-6) / np.maximum(widths, 1e-6))
    most = int(statistics.per_image.max(initial=1))
    step = max(1, -(-most // 24))
    side = np.sqrt((statistics.scaled[:, 2:] - statistics.scaled[:, :2]).prod(axis=1))
    images = np.sqrt(statistics.image_sizes.prod(axis=1).astype(np.float64))
    charts = {
        "Objects of each class": bars(labels, counts),
        "Size of the objects as the network sees them": histogram(
            side, _SIZE_EDGES, "root of the box's area, network pixels (lower edge of a bar)"
        ),
        "Objects per image": histogram(
            statistics.per_image, np.arange(0, most + step + 1, step), "objects in an image"
        ),
        "Shape of the boxes": histogram(ratio, np.arange(-4, 4.01, 0.5), "log2 of height / width; 0 is a square"),
        "Size of the images": histogram(
            images, np.linspace(0, images.max(initial=1) * 1.05, 21).round(), "root of height x width"
        ),
    }
    return row((figure(source, title) for title, source in charts.items()), "columns")


def _anchors(statistics: Statistics, config: Config) -> str:
    own, published = (
        coverage(statistics, config, tuple(m.anchor_sizes), tuple(m.anchor_aspect_ratios))
        for m in (config.model, ModelConfig())
    )

    def line(name: str, c: Coverage) -> str:
        sizes, ratios = (", ".join(f"{v:g}" for v in values) for values in (c.anchor_sizes, c.ratios))
        return (
            f"<tr><td>{name}<td>{sizes}<td>{ratios}<td class=n>{c.unmatched:.1%}<td class=n>{c.hopeless:.1%}"
            f"<td class=n>{c.mean:.2f}<td class=n>{c.in_training:.2f}</tr>"
        )

    rows = [line("the flagfile's", own)] + ([line("the published", published)] if published != own else [])
    positive, negative = config.model.rpn_positive_iou, config.model.rpn_negative_iou
    return (
        "<p>Share of the boxes that no anchor meets with an IoU of "
        f"{positive:g} (they train through their one best anchor alone) or even {negative:g}. The last column is what "
        "the recipe maximizes: the boxes in training crops, at both ends of the scale jitter too, each IoU counted up "
        "to 0.7, since an anchor of that IoU is a positive.</p>"
        f"<table><tr><th>anchors<th>sizes<th>height / width<th>best IoU below {positive:g}<th>below {negative:g}"
        f"<th>mean best IoU<th>in training, up to 0.7</tr>{''.join(rows)}</table>"
    )


def _samples(examined: Examined, seed: int) -> list[str]:
    """Overlays of images, rare classes first, as HTML figures."""
    by_image: dict[int, list] = {}
    for annotation in examined.annotations:
        by_image.setdefault(annotation.record["image_id"], []).append(annotation)
    order = np.random.default_rng(seed).permutation(len(examined.images))
    names = {c["id"]: c["name"] for c in examined.categories}
    seen: dict[int, int] = {}
    chosen = []
    for wanted_new in (True, False):
        for index in order.tolist():
            mine = by_image.get(examined.images[index].record["id"], [])
            classes = {a.record["category_id"] for a in mine}
            if len(chosen) < _SAMPLES and index not in chosen and mine and (not wanted_new or classes - seen.keys()):
                chosen.append(index)
                seen |= dict.fromkeys(classes, 1)
    figures = []
    for index in chosen:
        image = examined.images[index]
        mine = by_image[image.record["id"]]
        height, width = image.record["height"], image.record["width"]
        frames = [mask_frame(a.rle, _corners(a.record["bbox"]), height, width) for a in mine]
        masks = [
            resample_area(mask_utils.decode(a.rle)[int(f[0]) : int(f[2]), int(f[1]) : int(f[3])], _MASK_CELLS)
            for a, f in zip(mine, frames, strict=True)
        ]
        captions = [names[a.record["category_id"]] + (" (crowd)" if a.record["iscrowd"] else "") for a in mine]
        picture = draw_instances(image.pixels(), np.array(frames), np.stack(masks) / 255, captions)
        caption = f"{image.record['file_name']}, {width} x {height}, {counted(len(mine), 'object')}"
        figures.append(figure(jpeg(picture, _SAMPLE_SIDE), caption))
    return figures


def _corners(bbox: list[float]) -> tuple[float, float, float, float]:
    """COCO's x, y, width, height as yxyx."""
    x, y, w, h = bbox
    return y, x, y + h, x + w
