"""Find objects in images and videos: `kmaskrcnn predict --model_dir=DIR --output=DIR photo.jpg folder '*.png'`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags, trained

INPUT = absl_flags.DEFINE_list("input", [], "Images and videos: files, folders or globs, comma-separated.")
OUTPUT = absl_flags.DEFINE_string("output", "predictions", "Folder for the outputs.")
OUTPUTS = absl_flags.DEFINE_list(
    "outputs",
    ["overlay", "coco"],
    "What to write. overlay: NAME.png (of a video NAME.mp4); masks: NAME_masks.png with an instance number per pixel; "
    "coco: results.json; labelme: labelme/NAME.json, to correct and train on; csv: objects.csv with areas and boxes.",
)
MIN_SCORE = absl_flags.DEFINE_float(
    "min_score", 0.5, "Objects with a lower score are neither drawn nor written.", lower_bound=0, upper_bound=1
)
SCORE_THRESHOLDS = absl_flags.DEFINE_string(
    "score_thresholds",
    "",
    "JSON file of the lowest score by class, such as the score_thresholds.json that evaluate writes; --min_score holds "
    "for classes that it does not name.",
)
CLASSES = absl_flags.DEFINE_list("classes", [], "Names of the classes to keep, comma-separated; empty: all.")
TOP_K = absl_flags.DEFINE_integer("top_k", 0, "Keep this many objects per image, the best; 0: all.", lower_bound=0)
FONT = absl_flags.DEFINE_string(
    "font", "", "Font file for the captions; empty: an installed font that has their characters."
)
TRACK = absl_flags.DEFINE_bool(
    "track", False, "Multi-object tracking: in a video, one id per object over all frames (package trackers)."
)
FRAME_STEP = absl_flags.DEFINE_integer("frame_step", 1, "Use every Nth frame of a video.", lower_bound=1)

ABOUT = "Find objects in images and videos."
TOPICS = {
    "Model": trained.TOPIC,
    "Input and output": ["input", "output", "outputs", "font", "frame_step", "track"],
    "Which objects": ["min_score", "score_thresholds", "classes", "top_k", "max_detections"],
    "Large images and test-time augmentation": ["tile_size", "tile_overlap", "tta_flip", "tta_rotate90", "tta_scales"],
}


def main(inputs: Sequence[str]) -> int:
    """Predict every image; one that cannot be read is named and passed over, and makes the exit code 1."""
    settings = flags.given_settings()
    trained.check_model(settings, needed=False)
    if not OUTPUT.value:
        raise ConfigError(f"--output is missing: the folder for {', '.join(OUTPUTS.value)}")
    trained.check_folder(settings)
    from kmaskrcnn.inference.inputs import find_inputs
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.inference.video import is_video, video_library
    from kmaskrcnn.progress import Progress, clock, phase
    from kmaskrcnn.results.prediction import class_indices
    from kmaskrcnn.results.thresholds import read_score_thresholds
    from kmaskrcnn.results.writers import Writer

    left_out: list[str] = []
    paths = find_inputs([*INPUT.value, *inputs], OUTPUT.value, left_out)
    if left_out:
        print(f"skipped: {len(left_out)} files written by earlier runs, such as {left_out[0]}")
    videos = [path for path, _ in paths if is_video(path)]
    if TRACK.value and not videos:
        raise ConfigError("--track: there is no video among the inputs")
    if videos:
        video_library()  # that it is missing is told before the work
        if "labelme" in OUTPUTS.value:
            raise ConfigError(f"--outputs=labelme needs images, {videos[0]} is a video: extract its frames first")
    folder = _model_folder(settings)
    with phase("loading the model"):
        predictor = Predictor.from_directory(folder, trained.WHICH.value, **settings)
    class_indices(predictor.labels, CLASSES.value)  # a wrong name is told before the work
    thresholds = read_score_thresholds(SCORE_THRESHOLDS.value, predictor.labels) if SCORE_THRESHOLDS.value else {}
    writer = Writer(OUTPUT.value, OUTPUTS.value, predictor.labels, [path for path, _ in paths], FONT.value)
    writer.check((name, is_video(path)) for path, name in paths)  # a file in the way is told before the work

    kept, best = 0, 0.0

    def select(prediction: Any) -> Any:
        nonlocal kept, best
        best = max(best, float(prediction.select(classes=CLASSES.value).scores.max(initial=0.0)))
        selected = prediction.select(MIN_SCORE.value, CLASSES.value, TOP_K.value, thresholds)
        kept += len(selected)
        return selected

    limit, least = predictor.config.model.max_detections, predictor.config.model.score_threshold
    lowest = min([MIN_SCORE.value, *thresholds.values()])
    if lowest < least:
        print(f"the model drops objects with a score of {least:g} or less: --score_threshold={lowest:g} keeps them")
    progress, failed = Progress("inputs", len(paths)), 0
    sums: list[str] = []
    try:
        for path, name in paths:
            found: Any
            try:
                if is_video(path):
                    found = _video(path, name, predictor.predict, select, lowest, writer)
                else:
                    found = predictor.predict(path)
            except OSError as error:
                line, failed = f"error: {error}", failed + 1
            else:
                told = found if is_video(path) else _image(path, name, found, select(found), limit, writer)
                line = f"{path}: {told}"
            progress.clear()
            print(line, flush=True)
            progress.step()
    finally:
        progress.clear()
        if progress.done:  # of a run that ends early too
            sums = [str(path) for path in writer.close()] or [OUTPUT.value]
    if writer.set_aside:
        print(f"kept, since it has other images: {', '.join(writer.set_aside)}")
    print(f"{len(paths) - failed} inputs in {clock(progress.seconds)}, {failed} unreadable; {', '.join(sums)}")
    if not kept and failed < len(paths):
        print(nothing_line(best, MIN_SCORE.value))
    return 1 if failed else 0


def nothing_line(best: float, min_score: float) -> str:
    """What to try where no object was shown in any image; `best` is the highest score that there was."""
    if not best:
        return "no object was found in any image, with whatever score: is it a model for such images?"
    return (
        f"no object is shown: the highest score is {best:.2f}, and --min_score is {min_score:g}; "
        "--min_score=0.05 shows what is less certain"
    )


def count_line(found: Any, shown: Any, limit: int, min_score: float) -> str:
    """How many objects are shown, and whether max_detections (`limit`) may have cost some; it counts per tile."""
    tiles = sum(lowest >= min_score for lowest in found.full_tiles)
    whole = found.pasted is None and len(found) >= limit and found.scores.min() >= min_score
    if not tiles and not whole:
        return f"{len(shown)} objects"
    where = f" in {tiles} {'tile' if tiles == 1 else 'tiles'}" if tiles else ""
    return f"{len(shown)} objects; --max_detections={limit} is reached{where}, and there may be more"


def _model_folder(settings: Mapping[str, Any]) -> str:
    """The folder of --model_dir or --preset; without either, of the best published COCO weights."""
    from kmaskrcnn.weights.presets import DEFAULT_PRESET, PRESETS

    if not settings.get("model_dir") and not trained.PRESET.value:
        preset = PRESETS[DEFAULT_PRESET]
        print(
            f"no --model_dir: using {DEFAULT_PRESET}, which detects COCO's 80 classes (published box and mask AP on "
            f"val2017 {preset.box_ap} and {preset.mask_ap})"
        )
    return trained.trained_folder(settings, DEFAULT_PRESET)


def _image(path: str, name: str, found: Any, shown: Any, limit: int, writer: Any) -> str:
    """Write what is shown of one image. Returns what is to be told of it."""
    written = writer.add(path, name, shown)
    line = count_line(found, shown, limit, MIN_SCORE.value)
    return line + (f" -> {', '.join(map(str, written))}" if written else "")


def _video(path: str, name: str, predict: Callable, select: Callable, min_score: float, writer: Any) -> str:
    """Predict the frames of a video and write them; min_score begins a track. Returns what is to be told of it."""
    from kmaskrcnn.inference.tracking import Tracker
    from kmaskrcnn.inference.video import VideoReader, VideoWriter
    from kmaskrcnn.progress import Progress

    reader = VideoReader(path)
    progress = Progress(f"frames of {path}", -(-reader.count // FRAME_STEP.value))
    rate = reader.frames_per_second / FRAME_STEP.value
    track = Tracker(rate, min_score).update if TRACK.value else lambda prediction: prediction
    objects = 0
    with writer.video(name) as target, VideoWriter(target, rate) as video:
        for number, frame in enumerate(reader):
            if number % FRAME_STEP.value:
                continue
            prediction = select(track(predict(frame)))
            objects += len(prediction)
            if "overlay" in writer.outputs:
                video.add(np.asarray(prediction.draw(min_score=0.0, font=FONT.value)))
            writer.add(f"{path}#{number}", f"{name}/{number:06d}", prediction, overlay=False)
            progress.step()
    progress.clear()
    written = f" -> {writer.files.path(f'{name}.mp4')}" if "overlay" in writer.outputs else ""
    return f"{progress.done} frames, {objects} objects{written}"


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(main, name, arguments, ABOUT, TOPICS, "INPUT")
