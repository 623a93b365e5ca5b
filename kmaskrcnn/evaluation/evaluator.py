"""Evaluation of a model on a data set."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskrcnn.cluster import Cluster
from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, DataError, evaluation_dataset
from kmaskrcnn.evaluation.analysis import Analysis, analyze
from kmaskrcnn.evaluation.coco_metrics import COUNT_IOUS, CocoScores, most_objects, score
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.outputs import Outputs, output_names
from kmaskrcnn.progress import Progress, phase
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of a model on a data set.

    Attributes:
        box: scores of the boxes.
        mask: scores of the masks.
        results: detections as COCO results, boxes and masks in pixels of the image files.
        overlays: the first images with their predictions, by file name, (H, W, 3) uint8.
        images: number of images scored.
        seconds: time spent on predicting them.
        limits: lines on how many detections of an image the model gave and the scores count, beside its objects, and
            on how many images were scored where that is not all.
        analysis: errors by kind, Boundary AP and score thresholds; None where `evaluate` was not asked for it.
    """

    box: CocoScores
    mask: CocoScores
    results: list[dict]
    overlays: dict[str, np.ndarray]
    images: int
    seconds: float
    limits: str = ""
    analysis: Analysis | None = None

    def scalars(self) -> dict[str, float]:
        """box_AP, mask_AP, mask_AP50, ... by name, AP of each class, mask_overlap at each IoU counted, the analysis."""
        values: dict[str, float] = {}
        for kind, scores in (("box", self.box), ("mask", self.mask)):
            values |= {f"{kind}_{name}": value for name, value in scores.summary.items()}
            values |= {f"{kind}_AP/{name}": value for name, value in scores.class_ap.items()}
        overlaps = zip(COUNT_IOUS, self.mask.overlap_scores(), strict=True)
        values |= {f"mask_overlap@{iou}": value for iou, value in overlaps}
        return values | (self.analysis.scalars() if self.analysis else {})

    def table(self) -> str:
        """The scores as lines of text."""
        columns = list(self.box.summary)
        lines = [f"{self.images} images in {self.seconds:.0f} s", " " * 8 + "".join(f"{c:>7}" for c in columns)]
        kinds = {"box": self.box, "mask": self.mask} | ({"boundary": self.analysis.boundary} if self.analysis else {})
        for kind, scores in kinds.items():
            lines.append(f"{kind:<8}" + "".join(f"{scores.summary[c]:7.3f}" for c in columns))
        if len(self.box.class_ap) > 1:
            width = max(map(len, ["class", *self.box.class_ap]))
            lines.append(f"{'class':<{width}}" + "".join(f"{kind + ' AP':>13}" for kind in kinds))
            for name in self.box.class_ap:
                lines.append(
                    f"{name:<{width}}" + "".join(f"{scores.class_ap[name]:13.3f}" for scores in kinds.values())
                )
        overlaps = "  ".join(
            f"{value:.3f} at {iou}" for iou, value in zip(COUNT_IOUS, self.mask.overlap_scores(), strict=True)
        )
        lines.append(f"masks with a score above 0.5, TP / (TP + FP + FN): {overlaps}")
        lines += [self.limits] if self.limits else []
        return "\n".join([*lines, *([self.analysis.table()] if self.analysis else [])])

    def write(self, directory: str | os.PathLike, read: Iterable[str | os.PathLike] = ()) -> None:
        """Write scores.json, results.json (COCO results), score_thresholds.json and the overlays into a folder.

        Args:
            directory: the folder; created if necessary.
            read: files that were read, which no output replaces.

        Raises:
            OutputError: a file exists that an earlier evaluation did not write.
        """
        outputs, names = evaluation_outputs(directory, list(self.overlays), read)
        outputs.write_text("scores.json", json.dumps({"images": self.images, **self.scalars()}, indent=2) + "\n")
        outputs.write_text("results.json", json.dumps(self.results))
        if self.analysis:
            found = {n: best.threshold for n, best in self.analysis.thresholds.items() if best.threshold is not None}
            outputs.write_text("score_thresholds.json", json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        for name, overlay in zip(names, self.overlays.values(), strict=True):
            with outputs.file(name) as path:
                Image.fromarray(overlay).save(path)


def evaluation_outputs(
    directory: str | os.PathLike, file_names: Sequence[str], read: Iterable[str | os.PathLike] = (), page: str = ""
) -> tuple[Outputs, list[str]]:
    """Where an evaluation is written, and the names of the overlays, seen to be free before the work.

    Args:
        directory: the folder.
        file_names: of the images whose overlays are written.
        read: files that were read, which no output replaces.
        page: name of a further file, if there is one.

    Raises:
        OutputError: a file is in the way that an earlier evaluation did not write.
    """
    outputs = Outputs(directory, "evaluate", read)
    names = [f"{name}.png" for name in output_names(file_names)]
    outputs.check(["scores.json", "results.json", "score_thresholds.json", *names, *([page] if page else [])])
    return outputs, names


def check_categories(labels: Labels, dataset: CocoDataset) -> None:
    """Raise DataError if the data set has a category that a model with these labels does not know."""
    names = dict(zip(labels.category_ids, labels.class_names, strict=True))
    for category, name in zip(dataset.category_ids, dataset.class_names, strict=True):
        if names.get(category) != name:
            raise DataError(
                f"the evaluation set's category {category} {name!r} is {names.get(category, 'missing')!r} in the model"
            )


def images_scored(dataset: CocoDataset, config: Config) -> int:
    """How many images of a data set, the first ones, `evaluate` takes."""
    return min(config.evaluation.eval_max_images or len(dataset), len(dataset))


def evaluate(
    predictor: Predictor,
    dataset: CocoDataset,
    config: Config,
    cluster: Cluster | None = None,
    beat: Callable[[], None] | None = None,
    analysis: bool = True,
) -> Evaluation:
    """Predict every image of a data set and score boxes and masks.

    Several workers share the batches, and all of them get all results, in the order of one process. Batches are never
    split, so that the results are those of one process to the last bit.

    Args:
        predictor: the model with its labels.
        dataset: ground truth. Categories of the model that it lacks are not scored.
        config: how images are resized, eval_batch_size, eval_max_images, eval_max_detections, eval_overlays.
        cluster: the workers that share the work, all of which must call this; default: this process alone.
        beat: called after each batch, if given, for a watchdog.
        analysis: whether to find what the errors are too; training needs the scores alone.

    Raises:
        DataError: the data set has a category that the model does not know, or an image cannot be read.
    """
    check_categories(predictor.labels, dataset)
    settings = config.evaluation
    count = images_scored(dataset, config)
    workers, worker = (cluster.workers, cluster.worker) if cluster else (1, 0)
    found: list[list[dict]] = []  # results of each batch
    overlays: dict[str, np.ndarray] = {}
    index_of = {int(image_id): index for index, image_id in enumerate(dataset.image_ids)}
    drawn = {int(image_id) for image_id in dataset.image_ids[: settings.eval_overlays]}
    progress = Progress("images evaluated", count)
    batches = _predictions(predictor, dataset, config, count, workers, worker)
    for batch in _name_unreadable(batches, dataset, count):
        own: list[dict] = []
        for image_id, prediction in batch:
            own += prediction.to_coco(image_id)
            if image_id in drawn:
                index = index_of[image_id]
                overlays[dataset.file_names[index]] = np.asarray(prediction.draw(dataset.image(index)))
        found.append(own)
        progress.step(min(workers * len(batch), count - progress.done))
        if beat:
            beat()
    progress.clear()
    if cluster:
        found, overlays = _from_all(cluster, found, overlays)
    results = [result for batch in found for result in batch]
    seconds = progress.seconds
    truth = dataset.coco_dict
    ids = dataset.image_ids[:count].tolist()
    with phase("scoring the detections"):
        box, mask = (
            score(truth, results, kind, settings.eval_max_detections, image_ids=ids) for kind in ("box", "mask")
        )
        errors = analyze(truth, results, ids, mask.max_detections) if analysis else None
    tile = settings.tile_size or np.inf
    whole = [i for i, size in zip(ids, dataset.sizes[:count].max(axis=1), strict=True) if size <= tile]
    limits = _limits(most_objects(truth, ids), most_objects(truth, whole), mask.max_detections, config)
    if count < len(dataset):
        limits = f"scored on the first {count} of {len(dataset)} images (eval_max_images={count})\n{limits}"
    return Evaluation(box, mask, results, overlays, count, seconds, limits, errors)


def _limits(most: int, most_whole: int, counted: int, config: Config) -> str:
    """How many detections of an image are counted, with each setting that is below the number of objects.

    `most_whole` is that number in the images that are predicted whole: each tile of the others has its own limit.
    """
    line = f"at most {counted} detections counted per image; an image has up to {most} objects"
    found = config.model.max_detections
    if counted < most:
        line += f"; eval_max_detections={counted} is too low for it"
    if found < most_whole:
        line += f"; the model gives at most max_detections={found}"
    return line


def _predictions(
    predictor: Predictor, dataset: CocoDataset, config: Config, count: int, workers: int, worker: int
) -> Iterator[list[tuple[int, Prediction]]]:
    """The ids and the predictions of the first `count` images, in batches, of which this worker takes its share."""
    if config.evaluation.tile_size or config.evaluation.augmented:
        for index in range(worker, count, workers):
            yield [(int(dataset.image_ids[index]), predictor.predict(dataset.image(index)))]
        return
    settings = config.evaluation
    for batch in evaluation_dataset(dataset, config.data, settings.eval_batch_size, count, workers, worker):
        yield list(zip(map(int, batch["image_ids"].numpy()), predictor.predict_batch(batch), strict=True))


def _name_unreadable(batches: Iterator[list], dataset: CocoDataset, count: int) -> Iterator[list]:
    """The batches; raises DataError with the image's name where one was lost or damaged after the set was checked."""
    try:
        yield from batches
    except (tf.errors.OpError, OSError):
        for index in range(count):
            if reason := dataset.read_problem(index):
                image = f"image {dataset.image_ids[index]} ({dataset.paths[index]})"
                advice = "repair it, or remove it from the evaluation set (scores without it do not compare)"
                raise DataError(f"{image}: {reason}; {advice}") from None
        raise


def _from_all(
    cluster: Cluster, found: list[list[dict]], overlays: dict[str, np.ndarray]
) -> tuple[list[list[dict]], dict[str, np.ndarray]]:
    """The results of each batch and the images of all workers; batch i was predicted by worker i % workers."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {"results": np.frombuffer(json.dumps(found).encode(), np.uint8), **overlays}
    np.savez_compressed(file, **arrays)
    shares, overlays = [], {}
    for data in cluster.gather(file.getvalue()):
        arrays = dict(np.load(io.BytesIO(data)))
        shares.append(json.loads(arrays.pop("results").tobytes()))
        overlays |= arrays
    rounds = itertools.zip_longest(*shares, fillvalue=[])
    return [batch for shared in rounds for batch in shared], overlays
