"""What was found in an image: boxes, names, masks in its own pixels. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from ..errors import ConfigError
from .draw import draw_instances, instance_color
from .labels import Labels
from .mask_paste import paste_window, window_to_rle
from .pasted_masks import PastedMasks, Window

# Long side of the image, and rows of the table, that a notebook shows.
_NOTEBOOK_SIDE, _NOTEBOOK_ROWS = 900, 20


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """The objects found in one image, by decreasing score.

    Attributes:
        height: of the image, in pixels.
        width: of the image, in pixels.
        boxes: (N, 4) float32 yxyx pixels of the image.
        scores: (N,) float32.
        classes: (N,) int32 in 1..C.
        mask_probabilities: (N, M, M) float32 over each box; None where `pasted` is given.
        labels: names and COCO ids of the classes.
        mask_paste: how masks are pasted, as for `kmaskrcnn.results.mask_paste.paste_window`.
        image: (height, width, 3) uint8, if it comes from `Predictor.predict`.
        pasted: masks at the size of the image, if objects were merged from tiles.
        track_ids: (N,) int32 ids of the objects in a tracked video; -1 for one without a track.
        shown_from: the lowest score that `draw` and a notebook show by default; a selection by score sets it.
        mask_scores: (N,) float32, of a model with mask_scoring: score times the predicted IoU of the mask, by which
            mask AP ranks. Order, selection, drawing and tracking go by `scores`: whether there is an object.
        full_tiles: the lowest score in each tile that had as many objects as the model gives; more may be in these.

    Jupyter notebooks display the image with a table of the objects.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_probabilities: np.ndarray | None
    labels: Labels
    mask_paste: str = "pixel_centers"
    image: np.ndarray | None = None
    pasted: PastedMasks | None = None
    track_ids: np.ndarray | None = None
    shown_from: float = 0.5
    mask_scores: np.ndarray | None = None
    full_tiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mask_probabilities is None and self.pasted is None:
            raise ValueError("a Prediction needs masks: mask_probabilities or pasted")

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        names = self.names
        counts = ", ".join(f"{names.count(name)} {name}" for name in self.labels.class_names if name in names)
        best = f", scores {self.scores.min():.2f} to {self.scores.max():.2f}" if names else ""
        return f"<Prediction of {self.width} x {self.height} pixels, {len(self)} objects{best}: {counts or 'none'}>"

    @property
    def _masks(self) -> np.ndarray | PastedMasks:
        masks = self.mask_probabilities if self.pasted is None else self.pasted
        assert masks is not None  # refused above
        return masks

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.labels.class_names[c - 1] for c in self.classes]

    def window(self, index: int) -> Window:
        """The mask of one object as a part of the image: (h, w) bool, and the y and x of its top left pixel."""
        masks = self._masks
        if isinstance(masks, PastedMasks):
            return masks.window(index)
        return paste_window(masks[index], self.boxes[index], self.height, self.width, self.mask_paste)

    def mask(self, index: int) -> np.ndarray:
        """The mask of one object at the image's size, (height, width) bool."""
        window, top, left = self.window(index)
        mask = np.zeros((self.height, self.width), bool)
        mask[top : top + window.shape[0], left : left + window.shape[1]] = window
        return mask

    def mask_areas(self) -> np.ndarray:
        """(N,) int64 pixels of each mask."""
        return np.array([np.count_nonzero(self.window(i)[0]) for i in range(len(self))], np.int64)

    def instance_mask(self) -> np.ndarray:
        """(height, width) int32: 0 for the background, else index + 1 of the object; higher scores on top."""
        numbers = np.zeros((self.height, self.width), np.int32)
        for index in reversed(range(len(self))):
            window, top, left = self.window(index)
            numbers[top : top + window.shape[0], left : left + window.shape[1]][window] = index + 1
        return numbers

    def take(self, rows: np.ndarray) -> Prediction:
        """The objects selected by an array of indices, or of bool."""
        fields = ("boxes", "scores", "classes", "mask_probabilities", "pasted", "track_ids", "mask_scores")
        values: dict[str, Any] = {name: getattr(self, name) for name in fields}
        values = {name: None if value is None else value[rows] for name, value in values.items()}
        return dataclasses.replace(self, **values)

    def above(self, score: float) -> Prediction:
        """The objects with at least this score, all of which `draw` shows."""
        return dataclasses.replace(self.take(self.scores >= score), shown_from=score)

    def select(
        self,
        min_score: float = 0.0,
        classes: Sequence[str] = (),
        top_k: int = 0,
        score_thresholds: Mapping[str, float] | None = None,
    ) -> Prediction:
        """The objects of these classes with the highest scores.

        Args:
            min_score: the lowest score to keep, which is then also what `draw` shows; 0: all, and `draw` is as before.
            classes: names of classes; empty: all.
            top_k: how many to keep, those with the highest scores; 0: all.
            score_thresholds: the lowest score to keep by class name, instead of `min_score`; not every class needs one.

        Raises:
            ConfigError: the model has no class of that name.
        """
        keep = self.scores >= min_score
        if score_thresholds:
            scores = self.scores.astype(np.float64)  # as thresholds are; in float32 one could round to a score below it
            for index, lowest in zip(
                class_indices(self.labels, [*score_thresholds]), score_thresholds.values(), strict=True
            ):
                keep = np.where(self.classes == index + 1, scores >= lowest, keep)
        if classes:
            keep &= np.isin(self.classes, [number + 1 for number in class_indices(self.labels, classes)])
        shown_from = min([min_score, *(score_thresholds or {}).values()]) if min_score or score_thresholds else None
        kept = self.take(np.flatnonzero(keep)[: top_k or None])
        return kept if shown_from is None else dataclasses.replace(kept, shown_from=shown_from)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results: dicts of image_id, category_id, score, bbox xywh, segmentation (compressed RLE), for JSON.

        Objects of a tracked video also have their `track_id`, those of a model with mask_scoring their `mask_score`.
        """
        results = []
        for index, (box, score, number) in enumerate(zip(self.boxes, self.scores, self.classes, strict=True)):
            rle = window_to_rle(*self.window(index), self.height, self.width)
            y0, x0, y1, x1 = (float(v) for v in box)
            track = {} if self.track_ids is None else {"track_id": int(self.track_ids[index])}
            mask = {} if self.mask_scores is None else {"mask_score": float(self.mask_scores[index])}
            results.append(
                {
                    "image_id": image_id,
                    "category_id": self.labels.category_ids[number - 1],
                    "score": float(score),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    **track,
                    **mask,
                }
            )
        return results

    def to_supervision(self, masks: bool = True) -> Any:
        """`supervision.Detections`, for the trackers, annotators and metrics of that package.

        Classes count from 0 there; `data["class_name"]` holds their names, `data["mask_score"]` the mask scores
        where there are any, `tracker_id` the ids of a tracked video.

        Args:
            masks: whether to include the masks, (N, height, width) bool.

        Raises:
            ConfigError: the package is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise ConfigError("to_supervision needs a package: pip install supervision") from None
        pasted = [self.mask(i) for i in range(len(self))] if masks else []
        data: dict[str, Any] = {"class_name": np.array(self.names, str)}
        if self.mask_scores is not None:
            data["mask_score"] = self.mask_scores
        return Detections(
            xyxy=self.boxes[:, [1, 0, 3, 2]],
            mask=np.array(pasted, bool).reshape(-1, self.height, self.width) if masks else None,
            confidence=self.scores,
            class_id=self.classes.astype(int) - 1,
            tracker_id=None if self.track_ids is None else self.track_ids.astype(int),
            data=data,
        )

    def draw(self, image: np.ndarray | None = None, min_score: float | None = None, font: str = "") -> Image.Image:
        """The image with the masks, boxes and names of the objects of at least `min_score` drawn on it.

        Args:
            image: (height, width, 3) uint8, upright; default: the image that was predicted.
            min_score: the lowest score to draw; default: `shown_from`, which is 0.5 unless objects were selected by
                score.
            font: font file for the captions; empty: an installed font that has their characters.

        Raises:
            ValueError: the prediction has no image, and none was given; or it is of another size.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("this prediction was made without its image: give it to draw(image)")
        height, width = np.shape(image)[:2]
        if (height, width) != (self.height, self.width):
            turned = ": it is not upright" if (width, height) == (self.height, self.width) else ""
            raise ValueError(
                f"an image of {width} x {height} pixels, the prediction is of {self.width} x {self.height}{turned}; "
                "read it with load_image of kmaskrcnn.export.client, which turns it as its EXIF orientation says"
            )
        shown = self.above(self.shown_from if min_score is None else min_score)
        captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores, strict=True)]
        colors = None
        if shown.track_ids is not None:  # one object has one color in all frames
            captions = [f"#{i} {c}" if i >= 0 else c for i, c in zip(shown.track_ids, captions, strict=True)]
            colors = [instance_color(int(i)) for i in shown.track_ids]
        return draw_instances(image, shown.boxes, shown._masks, captions, colors, font)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the image with the objects; None where the image is not at hand."""
        if self.image is None:
            return None
        picture = self.draw()
        picture.thumbnail((_NOTEBOOK_SIDE, _NOTEBOOK_SIDE))
        data = io.BytesIO()
        picture.save(data, "PNG")
        return data.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: the image, and a table of the first objects."""
        shown = self.above(self.shown_from)
        title = f"{len(shown)} objects with a score of at least {self.shown_from:g} ({len(self)} in all), "
        title += f"{self.width} x {self.height}"
        heads = "".join(f"<th>{name}</th>" for name in ("", "class", "score", "box (y0, x0, y1, x1)", "mask pixels"))
        rows = []
        first = shown.take(np.arange(min(len(shown), _NOTEBOOK_ROWS)))
        for i, (name, score, box, area) in enumerate(
            zip(first.names, first.scores, first.boxes, first.mask_areas(), strict=True), 1
        ):
            corners = ", ".join(f"{v:.1f}" for v in box)
            rows.append(f"<tr><td>{i}</td><td>{html.escape(name)}</td><td>{score:.3f}</td><td>{corners}</td>")
            rows.append(f"<td>{area}</td></tr>")
        more = f"<p>and {len(shown) - len(first)} more</p>" if len(shown) > len(first) else ""
        png = self._repr_png_()
        picture = f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}"/>' if png else ""
        return f"<div><p>{title}</p>{picture}<table><tr>{heads}</tr>{''.join(rows)}</table>{more}</div>"


def class_indices(labels: Labels, names: Sequence[str]) -> list[int]:
    """Positions of classes in `labels.class_names`; raises ConfigError on a name that is not there."""
    unknown = [name for name in names if name not in labels.class_names]
    if unknown:
        raise ConfigError(f"no class {unknown[0]!r} in the model: it has {', '.join(labels.class_names)}")
    return [labels.class_names.index(name) for name in names]


def coco_dataset(
    images: Sequence[tuple[str, int, int]], results: Sequence[Sequence[dict[str, Any]]], labels: Labels
) -> dict[str, list[dict]]:
    """Results as a COCO instances dict, annotations with a score: for COCO tools, or to train on once corrected.

    Args:
        images: file name, height and width of each; image ids count from 1.
        results: of each image, as `Prediction.to_coco` makes them with these ids.
        labels: names and COCO ids of the classes.
    """
    records, annotations = [], []
    for image_id, ((name, height, width), found) in enumerate(zip(images, results, strict=True), 1):
        records.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for result in found:
            area = float(mask_utils.area(result["segmentation"]))
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": area, **result})
    categories = [{"id": i, "name": n} for i, n in zip(labels.category_ids, labels.class_names, strict=True)]
    return {"images": records, "annotations": annotations, "categories": categories}
