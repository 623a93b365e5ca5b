"""Train Mask R-CNN: `kmaskrcnn train --train_annotations=SET --model_dir=FOLDER [--NAME=VALUE ...]`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags as absl_flags

from kmaskrcnn import onednn
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.folders import local_folder
from kmaskrcnn.programs import flags

if TYPE_CHECKING:
    from kmaskrcnn.data import CocoDataset
    from kmaskrcnn.training.signals import SignalWatch

PREVIEW = absl_flags.DEFINE_integer(
    "preview_augmentations", 0, "Draw this many augmented training images to model_dir/augmentations.png and stop.", 0
)
absl_flags.DEFINE_boolean(
    "recipe",
    None,
    "Derive the settings that are not given from the data (the recipe); default: unless a --flagfile has some of them.",
)

ABOUT = "Train Mask R-CNN on your images. To resume a run, give the same command again."
TOPICS = {
    "Data": ["train_annotations", "train_images", "val_annotations", "val_images", "data_format", "class_names"],
    "Output": ["model_dir", "preview_augmentations"],
    "Recipe": ["recipe"],
    "Model": ["backbone", "init_weights", "mask_conv_channels", "max_detections"],
    "Image size": ["min_size", "max_size", "crop_size"],
    "Training": [
        "batch_size",
        "steps",
        "epochs",
        "max_minutes",
        "learning_rate",
        "dtype",
        "eval_every",
        "patience",
        "seed",
    ],
    "Multi-GPU and several workers": ["strategy", "num_devices", "num_local_workers"],
}


def main() -> int:
    """Train, with evaluation.

    Exit code 0; 75 after a signal and 76 after the loss of another worker (start again to resume); 2 on a bad setting.
    """
    from kmaskrcnn.programs import automatic
    from kmaskrcnn.training.signals import SignalWatch

    signals = SignalWatch()
    config = flags.config_from_flags()
    onednn.check_trainable()
    if not config.train.model_dir:
        raise ConfigError("--model_dir is missing: the folder for checkpoints, logs and images")
    given = flags.given_settings()
    if "train_annotations" not in given and not any(name.startswith("shapes_") for name in given):
        raise ConfigError(
            "--train_annotations is missing: the set to train on, or shapes for the built-in one; "
            "docs/guide/data.md lists the formats"
        )
    # A shell leaves the ~ of --model_dir=~/run as it is.
    given["model_dir"] = str(local_folder(config.train.model_dir))
    config = config.replace(model_dir=given["model_dir"])
    first, *others = [name for name in automatic.LENGTHS if given.get(name)] or [""]
    for name in others:
        print(
            f"--{first}={given[first]:g} sets the length of training, so --{name}={given[name]:g} is not used; "
            f"--{first}=0 lets it count"
        )
    if PREVIEW.value:
        preview(config, given)
        return 0
    from kmaskrcnn.errors import EXIT_RESTART
    from kmaskrcnn.programs.launcher import follow_launcher, launch
    from kmaskrcnn.progress import listening
    from kmaskrcnn.training.watchdog import Watchdog

    if config.train.num_local_workers:
        if config.train.strategy not in ("one", "multi_worker"):
            raise ConfigError(f"--num_local_workers is for --strategy=multi_worker, not {config.train.strategy}")
        signals.stop()
        return launch(config.train.num_local_workers, sys.orig_argv[1:])
    follow_launcher()
    seconds = config.train.stall_timeout
    message = (
        f"no progress for --stall_timeout={seconds:g} seconds: this process, another worker or the storage of the "
        "images is stalled; start again to resume from the newest checkpoint"
    )
    with Watchdog(seconds, EXIT_RESTART, message) as watchdog, listening(watchdog.beat):
        return train(config, given, watchdog.beat, signals)


def open_sets(
    config: Config, given: Mapping[str, Any], devices: int = 1
) -> tuple[Config, CocoDataset, CocoDataset | None]:
    """The settings with the number of classes and, where one is made, the recipe; training and validation set."""
    from kmaskrcnn.data import open_dataset, open_raw
    from kmaskrcnn.evaluation import check_categories
    from kmaskrcnn.programs import automatic
    from kmaskrcnn.progress import phase
    from kmaskrcnn.results.labels import Labels

    makes_recipe = flags.makes_recipe()
    if makes_recipe and (saved := automatic.settings_to_go_on(config, given)):
        makes_recipe, config = False, saved
    config = automatic.use_own_validation(config)
    if makes_recipe and config.data.train_annotations != "shapes":
        with phase("reading the training set"):
            raw = open_raw(config, "train")
        config = automatic.keep_validation_images(automatic.name_classes(config, raw), raw)
    with phase("reading the training set"):
        train_set = open_dataset(config, "train")
    print("training set: ", end="")
    train_set.summary()
    labels = Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
    classes = len(train_set.class_names)
    if "num_classes" in given and config.model.num_classes != classes:
        raise ConfigError(f"--num_classes={config.model.num_classes}, but the training set has {classes}")
    config = config.replace(num_classes=classes)
    if absent := automatic.classes_without_objects(train_set):
        print(f"no object of {', '.join(absent)} in the training set, so the model cannot learn it")
    with phase("reading the evaluation set"):
        val_set = open_dataset(config, "val", labels)
    if val_set is not None:
        print("evaluation set: ", end="")
        val_set.summary()
        check_categories(labels, val_set)
    if makes_recipe:
        with phase("making the recipe"):
            recipe = automatic.recipe_for(config, given, train_set, devices)
        config = recipe.config
        print(f"recipe made from the training set:\n{recipe.text()}", flush=True)
    return config, train_set, val_set


def preview(config: Config, given: Mapping[str, Any]) -> None:
    """Draw training images as they go into the network."""
    from kmaskrcnn.data.input.preview import contact_sheet

    config, train_set, _ = open_sets(config, given)
    path = Path(config.train.model_dir) / "augmentations.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(train_set, config, PREVIEW.value).save(path)
    print(f"written: {path}")


def train(config: Config, given: Mapping[str, Any], beat: Callable[[], None], signals: SignalWatch) -> int:
    """Train as one of the workers, or the only one."""
    import keras
    import tensorflow as tf

    from kmaskrcnn.cluster import open_cluster
    from kmaskrcnn.errors import EXIT_INTERRUPTED
    from kmaskrcnn.evaluation import evaluate
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.programs import automatic
    from kmaskrcnn.training.callbacks import logger_callbacks
    from kmaskrcnn.training.run_log import verdict
    from kmaskrcnn.training.trainer import Trainer
    from kmaskrcnn.weights.convert import starting_weights

    if config.train.deterministic:
        keras.utils.set_random_seed(config.train.seed)
        tf.config.experimental.enable_op_determinism()
    cluster = open_cluster(config.train)
    with cluster.watch(), cluster.quiet():
        print(cluster.describe(), flush=True)
        # What one worker writes is read by the others; else nobody waits for another's reading.
        writes = flags.makes_recipe() or "shapes" in (config.data.train_annotations, config.data.val_annotations)

        def score(model, step):
            predictor = Predictor(model, config, trainer.labels)
            result = evaluate(predictor, val_set, config, cluster, trainer.pulse, analysis=False)
            print(f"evaluation after step {step}: {result.table()}", flush=True)
            return result.scalars(), result.overlays

        with automatic.split_taken_back_on_error(config):
            with cluster.in_turn() if writes else contextlib.nullcontext():
                config, train_set, val_set = open_sets(config, given, cluster.replicas)
            if flags.makes_recipe():
                config = automatic.settings_of_chief(config, given, cluster)
            loggers = logger_callbacks(config) if cluster.is_chief else []
            evaluation = score if val_set is not None else None
            trainer = Trainer(config, train_set, evaluation, cluster, beat, loggers, starting_weights)
        signals.unsaved = lambda: trainer.unsaved
        outcome = trainer.train()
        if outcome.interrupted:
            return EXIT_INTERRUPTED
        folder = trainer.directory
        problem = verdict(config, outcome.step, outcome.epochs, outcome.scores)
        print(f"finished, but {problem}" if problem else f"done: {outcome.step} steps", end="; ")
        print(f"the model is in {folder}, curves: tensorboard --logdir={folder}")
    return 0


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS)
