"""Predict many images: kmaskrcnn batch --model=exported/1 --input='photos/*.jpg' --output=results.

Flags that are not listed here go to Apache Beam: --runner and those of the runner.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from kmaskrcnn.config import ConfigError


def _arguments(name: str, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(name, description=__doc__, allow_abbrev=False)
    parser.add_argument("--helpfull", action="help", help=argparse.SUPPRESS)  # as the other commands have it
    parser.add_argument("--model", default="", help="numbered folder of a SavedModel, or a .tflite file")
    parser.add_argument("--input", action="append", default=[], help="images: a file or glob; may be repeated")
    parser.add_argument("--input_csv", action="append", default=[], help="CSV file with a header; may be repeated")
    parser.add_argument(
        "--csv_column", default="uri", help="column of --input_csv with the paths or URIs of the images"
    )
    parser.add_argument(
        "--input_tfrecord", action="append", default=[], help="glob of TFRecord files with image/encoded"
    )
    parser.add_argument("--output", default="", help="folder for detections-*.jsonl and failures-*.jsonl")
    parser.add_argument("--min_score", type=float, default=0.5, help="detections with a lower score are left out")
    parser.add_argument("--shards", type=int, default=0, help="number of output files; 0: the runner decides")
    parser.add_argument("--batch_size", type=int, default=1, help="images per batch")
    parser.add_argument("--threads", type=int, default=0, help="model threads per worker; 0: all cores")
    return parser.parse_known_args(argv)


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    logging.getLogger().setLevel(logging.WARNING)
    try:
        return main(name, arguments)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def main(name: str, arguments: list[str]) -> int:
    """Run the pipeline; returns 1 where not one image could be predicted."""
    options, rest = _arguments(name, arguments)
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ConfigError("Apache Beam is not installed: pip install 'kmaskrcnn[beam]'") from None
    from kmaskrcnn.beam import stages
    from kmaskrcnn.beam.model_handler import DetectorHandler

    columns = _check(options)
    _import_runner(rest)
    beam_options = PipelineOptions(rest)
    beam_options.get_all_options(display_warnings=True)
    handler = DetectorHandler(options.model, options.batch_size, options.threads)
    try:
        pipeline = beam.Pipeline(options=beam_options)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    stages.build(
        pipeline,
        handler,
        options.output.rstrip("/"),
        options.input,
        list(zip(options.input_csv, columns, strict=True)),
        options.input_tfrecord,
        options.min_score,
        options.shards,
    )
    try:
        result = pipeline.run()
        result.wait_until_finish()
    except (RuntimeError, OSError) as error:
        logging.debug("the run failed", exc_info=True)
        words = " ".join(str(error).split())[:300]
        print(f"error: the run failed ({words}): start it again, into an empty folder", file=sys.stderr)
        return 1
    if not _found(f"{options.output.rstrip('/')}/{stages.DETECTIONS}-*"):
        print(f"error: the runner ended without writing results to {options.output}", file=sys.stderr)
        return 1
    return _report(result, options.output)


def _import_runner(arguments: list[str]) -> None:
    """Import a runner that is given by its full name: Beam knows its flags only then."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--runner", default="")
    runner = parser.parse_known_args(arguments)[0].runner
    module, _, name = runner.rpartition(".")
    try:
        if module and not hasattr(importlib.import_module(module), name):
            raise ConfigError(f"--runner={runner}: {module} has no {name}")
    except ImportError as error:
        raise ConfigError(f"--runner={runner}: {error}") from None


def _found(pattern: str) -> bool:
    """Whether there is a file of this name, glob or URI."""
    from apache_beam.io.filesystems import FileSystems

    try:
        return bool(FileSystems.match([pattern], [1])[0].metadata_list)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{pattern}: {error}") from None


def _check(options: argparse.Namespace) -> list[int]:
    """Refuse what cannot work before any worker starts; returns the column of each CSV file."""
    from kmaskrcnn.beam import stages

    for name in ("model", "output"):
        if not getattr(options, name):
            raise ConfigError(f"--{name} is missing")
    if not (options.input or options.input_csv or options.input_tfrecord):
        raise ConfigError("--input, --input_csv or --input_tfrecord is missing")
    for name, lowest in (("batch_size", 1), ("shards", 0), ("threads", 0)):
        if getattr(options, name) < lowest:
            raise ConfigError(f"--{name}={getattr(options, name)}: must be at least {lowest}")
    if not 0 <= options.min_score <= 1:
        raise ConfigError(f"--min_score={options.min_score:g}: must be from 0 to 1")
    tflite = options.model.endswith(".tflite")
    if tflite and options.batch_size != 1:
        raise ConfigError("--batch_size: a .tflite file takes one image at once")
    if not _found(options.model if tflite else options.model.rstrip("/") + "/saved_model.pb"):
        raise ConfigError(f"--model={options.model}: neither a SavedModel nor a .tflite file that export.py wrote")
    for pattern in options.input:
        if os.path.isdir(pattern):
            raise ConfigError(f"--input={pattern} is a folder: give a glob, such as '{pattern.rstrip('/')}/*.jpg'")
    for pattern in [p for p in options.input if stages.is_pattern(p)] + options.input_csv + options.input_tfrecord:
        if not _found(pattern):
            raise ConfigError(f"{pattern}: no such files")
    if any(_found(f"{options.output.rstrip('/')}/{name}-*") for name in (stages.DETECTIONS, stages.FAILURES)):
        raise ConfigError(f"--output={options.output} holds the results of another run: choose another folder")
    try:
        return [stages.csv_column(path, options.csv_column) for path in options.input_csv]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _report(result, output: str) -> int:
    """Print the counters; some runners keep them only for themselves."""
    from apache_beam.metrics import MetricsFilter

    from kmaskrcnn.beam.model_handler import NAMESPACE

    try:
        metrics = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    except (AttributeError, NotImplementedError):
        print(f"done; {output}")
        return 0
    counts = {counter.key.metric.name: counter.result for counter in metrics["counters"]}
    images, failures = counts.get("images", 0), counts.get("failures", 0)
    print(f"{images} images, {counts.get('detections', 0)} detections, {failures} unreadable; {output}")
    for distribution in metrics["distributions"]:
        latency = distribution.result
        print(f"milliseconds per image: mean {latency.mean:.0f}, {latency.min} to {latency.max}")
    return 1 if failures and not images else 0
