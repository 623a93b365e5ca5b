"""The pipeline: names of images, their bytes, detections as JSON lines; what cannot be read is set aside."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.io.fileio import EmptyMatchTreatment, MatchAll
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from pycocotools import mask as mask_utils

from kmaskrcnn.beam.model_handler import NAMESPACE, DetectorHandler, Outcome
from kmaskrcnn.export.client import ImageError
from kmaskrcnn.results.prediction import Prediction

DETECTIONS, FAILURES = "detections", "failures"
# Larger files are no photographs, and a worker would hold several of them.
MAX_FILE_BYTES = 1 << 28
_WILDCARDS = frozenset("*?[")

Failure = tuple[str, str]


def is_pattern(path: str) -> bool:
    """Whether a path is a glob."""
    return not _WILDCARDS.isdisjoint(path)


class ReadImage(beam.DoFn):
    """A path or URI of any of Beam's file systems -> (path, bytes); or a failure."""

    def process(self, path: str) -> Iterator[Any]:
        """Read one file."""
        try:
            with FileSystems.open(path, "application/octet-stream", CompressionTypes.UNCOMPRESSED) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            yield _failure(path, f"cannot be read: {' '.join(str(error).split())[:300]}")
            return
        if len(data) > MAX_FILE_BYTES:
            yield _failure(path, f"cannot be read: larger than {MAX_FILE_BYTES} bytes")
        else:
            yield path, data


class ReadExample(beam.DoFn):
    """A serialized tf.train.Example with image/encoded -> (name, bytes); or a failure.

    The name is image/filename, or else image/source_id, or else a hash of the record.
    """

    def process(self, record: bytes) -> Iterator[Any]:
        """Take one record apart."""
        import hashlib

        import tensorflow as tf
        from google.protobuf.message import DecodeError

        name = f"record {hashlib.blake2b(record, digest_size=8).hexdigest()}"
        try:
            features = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            yield _failure(name, "no tf.train.Example")
            return
        texts = [features[key].bytes_list.value for key in ("image/filename", "image/source_id") if key in features]
        name = next((value[0].decode(errors="replace") for value in texts if value and value[0]), name)
        images = features["image/encoded"].bytes_list.value if "image/encoded" in features else []
        yield (name, images[0]) if len(images) == 1 else _failure(name, "the record has no image/encoded")


class Describe(beam.DoFn):
    """(name, outcome) -> a JSON line of the image's detections; or a failure. Counts.

    Args:
        min_score: detections with a lower score are left out.
    """

    def __init__(self, min_score: float):
        self._min_score = min_score
        self._images = Metrics.counter(NAMESPACE, "images")
        self._detections = Metrics.counter(NAMESPACE, "detections")

    def process(self, element: tuple[str, Outcome]) -> Iterator[Any]:
        """Describe one image."""
        name, outcome = element
        if isinstance(outcome, ImageError):
            yield _failure(name, str(outcome))
            return
        found = outcome.above(self._min_score)
        self._images.inc()
        self._detections.inc(len(found))
        yield json.dumps(describe(name, found))


def describe(name: str, prediction: Prediction) -> dict[str, Any]:
    """One image as in a COCO instances file: file_name, height, width, and its annotations with score and RLE mask."""
    annotations = []
    for result in prediction.to_coco(0):
        del result["image_id"]
        annotations.append({**result, "area": float(mask_utils.area(result["segmentation"])), "iscrowd": 0})
    return {"file_name": name, "height": prediction.height, "width": prediction.width, "annotations": annotations}


def _failure(name: str, reason: str) -> beam.pvalue.TaggedOutput:
    return beam.pvalue.TaggedOutput(FAILURES, (name, reason))


class CountFailure(beam.DoFn):
    """(name, reason) -> a JSON line. Counts."""

    def __init__(self):
        self._failures = Metrics.counter(NAMESPACE, "failures")

    def process(self, failure: Failure) -> Iterator[str]:
        """Describe one failure."""
        self._failures.inc()
        yield json.dumps({"file_name": failure[0], "reason": failure[1]})


class NamesInCsv(beam.DoFn):
    """A line of a CSV file -> the value of one column, where there is one."""

    def __init__(self, column: int):
        self._column = column

    def process(self, line: str) -> Iterator[str]:
        """Take one line apart."""
        row = next(csv.reader([line]), [])
        if len(row) > self._column and row[self._column].strip():
            yield row[self._column].strip()


def csv_column(path: str, column: str) -> int:
    """The position of a column in the header of a CSV file; raises ValueError where there is none."""
    with FileSystems.open(path, "text/plain") as file:
        header = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
    if column not in header:
        raise ValueError(f"{path}: its header has no column {column!r}, only {', '.join(header) or 'nothing'}")
    return header.index(column)


def build(
    pipeline: beam.Pipeline,
    handler: DetectorHandler,
    output: str,
    paths: Sequence[str] = (),
    csv_files: Sequence[tuple[str, int]] = (),
    tfrecords: Sequence[str] = (),
    min_score: float = 0.5,
    shards: int = 0,
) -> None:
    """Lay the pipeline out.

    Args:
        pipeline: to add to.
        handler: of the model.
        output: folder for detections-*.jsonl, a line an image, and failures-*.jsonl, file_name and reason a line.
        paths: images as files and globs. A file that several of them, or of the CSV files, name is read once.
        csv_files: CSV files with a header, and the position of the column with the paths.
        tfrecords: globs of TFRecord files of tf.train.Example; each record is taken once.
        min_score: detections with a lower score are left out.
        shards: number of detections files; 0: the runner decides.
    """
    names = []
    files = [path for path in paths if not is_pattern(path)]
    patterns = [path for path in paths if is_pattern(path)]
    if files:
        names.append(pipeline | "Files" >> beam.Create(files))
    if patterns:
        matches = pipeline | "Globs" >> beam.Create(patterns) | MatchAll(EmptyMatchTreatment.DISALLOW)
        names.append(matches | "Paths" >> beam.Map(lambda metadata: metadata.path))
    for path, column in csv_files:
        lines = pipeline | f"Read {path}" >> beam.io.ReadFromText(path, skip_header_lines=1)
        names.append(lines | f"Column of {path}" >> beam.ParDo(NamesInCsv(column)))
    images, failures = [], []

    def split(results: beam.pvalue.DoOutputsTuple) -> None:
        images.append(results[DETECTIONS])
        failures.append(results[FAILURES])

    if names:
        # Distinct also spreads the names over the workers.
        distinct = names | "All names" >> beam.Flatten() | "Each once" >> beam.Distinct()
        split(distinct | "Read" >> beam.ParDo(ReadImage()).with_outputs(FAILURES, main=DETECTIONS))
    for pattern in tfrecords:
        records = pipeline | f"Read {pattern}" >> beam.io.ReadFromTFRecord(pattern)
        split(records | f"Examples of {pattern}" >> beam.ParDo(ReadExample()).with_outputs(FAILURES, main=DETECTIONS))
    outcomes = images | "All images" >> beam.Flatten() | "Detect" >> RunInference(KeyedModelHandler(handler))
    described = outcomes | "Describe" >> beam.ParDo(Describe(min_score)).with_outputs(FAILURES, main=DETECTIONS)
    failures.append(described[FAILURES])
    described[DETECTIONS] | "Write" >> beam.io.WriteToText(f"{output}/{DETECTIONS}", ".jsonl", num_shards=shards)
    lines = failures | "All failures" >> beam.Flatten() | "Describe failures" >> beam.ParDo(CountFailure())
    lines | "Write failures" >> beam.io.WriteToText(f"{output}/{FAILURES}", ".jsonl", num_shards=1)
