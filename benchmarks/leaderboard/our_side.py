"""kmaskrcnn by its automatic recipe, `kmaskrcnn train` without a flagfile, or by --flags; its clock is the processor's.

The automatic recipe keeps a fifth of the training images for its own evaluation; --flags trains on all of them.
"""

from __future__ import annotations

import json
import shlex

from benchmarks.leaderboard.side import MAX_DETECTIONS, Budget, parse, predict_all, tell_training, versions


def train(options) -> None:
    """Run the command; evaluation is left out of the time, and starting and tracing are part of it."""
    budget = Budget(options.minutes)
    from kmaskrcnn import onednn

    onednn.set_up(frozen_weights=False)
    from kmaskrcnn.programs import train as program
    from kmaskrcnn.training import trainer

    class Timed(trainer.Trainer):
        """Goes by processor time, so that other jobs of the machine take nothing from the run."""

        begin = 0.0

        def _share(self, step: int, elapsed: float) -> float:
            if not step:
                return 0.0
            self.begin = self.begin or budget.spent()
            return (budget.spent() - self.begin) / (budget.seconds - self.begin)

        def _score(self, summaries, step):
            told["seconds"], told["steps"] = budget.spent(), step
            with budget.paused():
                return super()._score(summaries, step)

    told: dict[str, float] = {}
    trainer.Trainer = Timed
    arguments = shlex.split(options.flags)
    if arguments:  # evaluation tells the end of a run
        arguments += [f"--val_annotations={options.task / 'train.json'}", f"--val_images={options.task / 'images'}"]
    arguments += [
        f"--train_annotations={options.task / 'train.json'}",
        f"--train_images={options.task / 'images'}",
        f"--model_dir={options.output / 'model'}",
        f"--seed={options.seed}",
        f"--max_minutes={options.minutes:g}",
        "--stall_timeout=0",  # a machine that measures something else may stop this process for long
        "--eval_max_images=4",  # nothing is chosen by it: there is one evaluation, at the end
    ]
    code = program.program("kmaskrcnn train", arguments)
    if code:
        raise SystemExit(code)
    config = json.loads((options.output / "model" / "config.json").read_text())
    tell_training(
        options,
        told["seconds"],
        steps=told["steps"],
        batch=config["train"]["batch_size"],
        dtype=config["train"]["dtype"],
        versions=versions("tensorflow", "keras"),
    )


def predict(options) -> None:
    import subprocess
    import sys

    import numpy as np

    from kmaskrcnn import onednn

    onednn.set_up(frozen_weights=True)
    from kmaskrcnn.inference.predictor import Predictor

    export = options.output / "exported"
    if not export.exists():
        command = [sys.executable, "-m", "kmaskrcnn", "export", f"--model_dir={options.output / 'model'}"]
        subprocess.run([*command, f"--output={export}"], check=True)
    predictor = Predictor.from_directory(options.output / "model", max_detections=MAX_DETECTIONS)
    ids = np.array([0, *predictor.labels.category_ids])

    def find(picture: np.ndarray):
        found = predictor.predict(picture)
        masks = np.stack([found.mask(i) for i in range(len(found))]) if len(found) else np.zeros((0, 1, 1), bool)
        return found.boxes[:, [1, 0, 3, 2]], found.scores, ids[found.classes], masks

    predict_all(options, find, export, working_score=0.5)


if __name__ == "__main__":
    given = parse()
    {"train": train, "predict": predict}[given.phase](given)
