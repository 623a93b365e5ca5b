"""Find objects in pictures: python predict.py --model_dir=DIR --input=FILE,FOLDER,'GLOB' --output=DIR."""

from __future__ import annotations

import json
import time
from pathlib import Path

from absl import flags as absl_flags

from kmaskrcnn import flags
from kmaskrcnn.config import ConfigError

INPUT = absl_flags.DEFINE_list("input", [], "Pictures: files, folders, globs, with commas between.")
OUTPUT = absl_flags.DEFINE_string("output", "", "Folder for the overlays (PNG) and results.json (COCO).")
MIN_SCORE = absl_flags.DEFINE_float("min_score", 0.5, "Objects with a lower score are neither drawn nor written.")
WHICH = absl_flags.DEFINE_enum("which", "best", ["best", "last"], "The best weights by evaluation, or the last.")


def main() -> int:
    """Predict every picture; one that cannot be read is named and passed over, and makes the exit code 1."""
    settings = flags.given_settings()
    if not settings.get("model_dir"):
        raise ConfigError("--model_dir is missing: a folder that train.py wrote")
    if not OUTPUT.value:
        raise ConfigError("--output is missing: the folder for overlays and results.json")
    from kmaskrcnn.predict import Predictor
    from kmaskrcnn.prediction import coco_dataset, find_pictures

    paths = find_pictures(INPUT.value)
    predictor = Predictor.from_directory(settings["model_dir"], WHICH.value, **settings)
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    found, failed, start = [], 0, time.monotonic()
    for number, (path, name) in enumerate(paths, 1):
        try:
            prediction = predictor.predict(path).above(MIN_SCORE.value)
        except OSError as error:
            print(f"error: {error}", flush=True)
            failed += 1
            continue
        target = output / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        prediction.draw(min_score=MIN_SCORE.value).save(target)
        found.append((str(path), prediction))
        print(f"{number}/{len(paths)} {path}: {len(prediction)} objects -> {target}", flush=True)
    (output / "results.json").write_text(json.dumps(coco_dataset(found, predictor.labels)))
    seconds = time.monotonic() - start
    print(f"{len(found)} pictures in {seconds:.0f} s, {failed} unreadable; {output / 'results.json'}")
    return 1 if failed else 0


if __name__ == "__main__":
    flags.define_config_flags()
    flags.run(main)
