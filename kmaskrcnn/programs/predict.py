"""Find objects in images and videos: `kmaskrcnn predict --model_dir=DIR --output=DIR photo.jpg folder '*.png'`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags

INPUT = absl_flags.DEFINE_list("input", [], "Pictures and videos: files, folders, globs, with commas between.")
OUTPUT = absl_flags.DEFINE_string("output", "", "Folder for what --outputs names.")
OUTPUTS = absl_flags.DEFINE_list(
    "outputs",
    ["overlay", "coco"],
    "What to write. overlay: NAME.png (of a video NAME.mp4); masks: NAME_masks.png with the number of each instance; "
    "coco: results.json; labelme: labelme/NAME.json, to correct and train on; csv: objects.csv with areas and boxes.",
)
MIN_SCORE = absl_flags.DEFINE_float("min_score", 0.5, "Objects with a lower score are neither drawn nor written.")
CLASSES = absl_flags.DEFINE_list("classes", [], "Names of the classes to keep, with commas between; empty: all.")
TOP_K = absl_flags.DEFINE_integer("top_k", 0, "Keep so many objects of a picture, the best; 0: all.", lower_bound=0)
FRAME_STEP = absl_flags.DEFINE_integer("frame_step", 1, "Of a video take every so many-th frame.", lower_bound=1)
WHICH = absl_flags.DEFINE_enum("which", "best", ["best", "last"], "The best weights by evaluation, or the last.")

ABOUT = "Find objects in images and videos."
TOPICS = {
    "Model": ["model_dir", "which"],
    "Input and output": ["input", "output", "outputs", "frame_step"],
    "Which objects": ["min_score", "classes", "top_k", "max_detections"],
    "Large images and test-time augmentation": ["tile_size", "tile_overlap", "tta_flip", "tta_scales"],
}


def main(inputs: Sequence[str]) -> int:
    """Predict every picture; one that cannot be read is named and passed over, and makes the exit code 1."""
    settings = flags.given_settings()
    if not settings.get("model_dir"):
        raise ConfigError("--model_dir is missing: a folder that train.py wrote")
    if not OUTPUT.value:
        raise ConfigError(f"--output is missing: the folder for {', '.join(OUTPUTS.value)}")
    from kmaskrcnn.inference.inputs import find_pictures
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.inference.video import is_video
    from kmaskrcnn.progress import Progress, clock
    from kmaskrcnn.results.prediction import class_indices
    from kmaskrcnn.results.writers import Writer

    paths = find_pictures([*INPUT.value, *inputs])
    predictor = Predictor.from_directory(settings["model_dir"], WHICH.value, **settings)
    class_indices(predictor.labels, CLASSES.value)  # a wrong name is told before the work
    writer = Writer(OUTPUT.value, OUTPUTS.value, predictor.labels)

    def predict(picture: Any) -> Any:
        return predictor.predict(picture).select(MIN_SCORE.value, CLASSES.value, TOP_K.value)

    progress, failed = Progress("inputs", len(paths)), 0
    for path, name in paths:
        try:
            if is_video(path):
                line = _video(path, name, predict, writer)
            else:
                prediction = predict(path)
                written = writer.add(path, name, prediction)
                line = f"{len(prediction)} objects" + (f" -> {', '.join(map(str, written))}" if written else "")
        except OSError as error:
            line, failed = f"error: {error}", failed + 1
        else:
            line = f"{path}: {line}"
        progress.clear()
        print(line, flush=True)
        progress.step()
    progress.clear()
    written = [str(path) for path in writer.close()] or [OUTPUT.value]
    print(f"{len(paths) - failed} inputs in {clock(progress.seconds)}, {failed} unreadable; {', '.join(written)}")
    return 1 if failed else 0


def _video(path: str, name: str, predict: Callable, writer: Any) -> str:
    """Predict the frames of a video and write them; returns what is to be told of it."""
    from kmaskrcnn.inference.video import VideoReader, VideoWriter
    from kmaskrcnn.progress import Progress

    if "labelme" in writer.outputs:
        raise ConfigError(f"--outputs=labelme needs pictures, {path} is a video: take its frames out first")
    reader = VideoReader(path)
    progress = Progress(f"frames of {path}", -(-reader.count // FRAME_STEP.value))
    target = Path(writer.directory) / f"{name}.mp4"
    objects = 0
    with VideoWriter(target, reader.frames_per_second / FRAME_STEP.value) as video:
        for number, frame in enumerate(reader):
            if number % FRAME_STEP.value:
                continue
            prediction = predict(frame)
            objects += len(prediction)
            if "overlay" in writer.outputs:
                video.add(np.asarray(prediction.draw(min_score=0.0)))
            writer.add(f"{path}#{number}", f"{name}/{number:06d}", prediction, overlay=False)
            progress.step()
    progress.clear()
    return f"{progress.done} frames, {objects} objects" + (f" -> {target}" if "overlay" in writer.outputs else "")


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS, "INPUT")
