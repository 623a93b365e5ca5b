"""COCO metrics of a trained model: `kmaskrcnn evaluate --model_dir=DIR [--report=DIR ...]`."""

from __future__ import annotations

import os
import sys

from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError, TrainConfig
from kmaskrcnn.programs import flags, trained

REPORT = absl_flags.DEFINE_string(
    "report", "", "Folder for report.html, a self-contained page, and results.json; empty: none."
)
COMPARE = absl_flags.DEFINE_string(
    "compare", "", "Folder of another run's --report or --output on the same images, to compare with it in the report."
)
OUTPUT = absl_flags.DEFINE_string("output", "", "Folder for scores.json, results.json and images; empty: none.")

ABOUT = "COCO metrics (AP) of a trained model on its validation set, or on another one."
TOPICS = {
    "Model": trained.TOPIC,
    "Data": ["val_annotations", "val_images", "data_format", "eval_max_images"],
    "Output": ["output", "report", "compare"],
    "Large images and test-time augmentation": ["tile_size", "tile_overlap", "tta_flip", "tta_rotate90", "tta_scales"],
    "Multi-GPU and several workers": ["strategy", "num_local_workers"],
}


def main() -> int:
    """Print the scores of a model folder, with its settings but for those given as flags; workers share the images."""
    # What keeps the evaluations of training short is no limit here.
    settings = {"eval_max_images": 0} | flags.given_settings()
    trained.check_model(settings)
    if COMPARE.value and not REPORT.value:
        raise ConfigError("--compare needs --report")
    trained.check_folder(settings)
    from kmaskrcnn.cluster import open_cluster
    from kmaskrcnn.data import open_dataset
    from kmaskrcnn.evaluation import evaluate
    from kmaskrcnn.evaluation.evaluator import evaluation_outputs, images_scored
    from kmaskrcnn.evaluation.report import compared_file, read_compared, write_report
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.programs.launcher import follow_launcher, launch
    from kmaskrcnn.progress import phase

    if settings.get("num_local_workers"):
        return launch(settings["num_local_workers"], sys.orig_argv[1:])
    follow_launcher()
    # The strategy of this run, not that of training.
    cluster = open_cluster(TrainConfig(strategy=settings.get("strategy", "one")))
    with cluster.watch(), cluster.quiet():
        folder = trained.trained_folder(settings)
        settings = trained.with_own_set(settings, folder)
        with phase("loading the model"):
            predictor = Predictor.from_directory(folder, trained.WHICH.value, **settings)
        with cluster.in_turn():
            dataset = open_dataset(predictor.config, "val", predictor.labels)
        if dataset is None:
            raise ConfigError("--val_annotations is missing: the COCO JSON to score on")
        dataset.summary()
        read = [predictor.config.data.val_annotations, *dataset.paths]
        if COMPARE.value:  # what is wrong with it is told before the work
            read_compared(COMPARE.value, dataset, images_scored(dataset, predictor.config))
            read.append(os.fspath(compared_file(COMPARE.value)))
        drawn = dataset.file_names[: predictor.config.evaluation.eval_overlays]
        for output, extra in ((OUTPUT.value, ""), (REPORT.value, "report.html")):
            if output and cluster.is_chief:
                evaluation_outputs(output, drawn, read, extra)  # a file in the way is told before the work
        result = evaluate(predictor, dataset, predictor.config, cluster)
        print(result.table())
        if OUTPUT.value and cluster.is_chief:
            result.write(OUTPUT.value, read)
            print(f"written to {OUTPUT.value}")
        if REPORT.value and cluster.is_chief:
            limit = predictor.config.evaluation.eval_max_detections
            page = write_report(REPORT.value, result, dataset, predictor.labels, folder, limit, COMPARE.value, read)
            print(f"report: {page}")
    return 0


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS)
