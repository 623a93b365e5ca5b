"""Ultralytics' YOLO11n-seg from random weights, by its defaults, with its own limit by time.

The package is under AGPL-3.0 and is used in an environment of its own alone. A tenth of the training images is kept for
its validation, which is outside of the budget and chooses the epoch.
"""

from __future__ import annotations

import os
import types
from pathlib import Path

import numpy as np

from benchmarks.leaderboard.side import MAX_DETECTIONS, Budget, parse, predict_all, read, tell_training, versions

# Nothing is fetched or installed by the package.
os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
MODEL = "yolo11n-seg.yaml"
_LOWEST = 0.001  # of the scores that enter AP, as in its validation
_SHOWN = 0.25  # its default for prediction
_WEIGHTS = Path("train/weights/best.pt")


def train(options) -> None:
    budget = Budget(options.minutes)
    os.environ["YOLO_CONFIG_DIR"] = str(options.output.resolve())
    from benchmarks import parity  # noqa: F401  makes torchvision importable

    from ultralytics import YOLO  # isort: skip
    from ultralytics.engine import trainer  # isort: skip
    from ultralytics.models.yolo.segment import SegmentationTrainer  # isort: skip

    trainer.time = types.SimpleNamespace(time=budget.spent)
    told: dict[str, float] = {"steps": 0}

    class Timed(SegmentationTrainer):
        """Goes by processor time without that of validation."""

        def validate(self):
            with budget.paused():
                return super().validate()

        def final_eval(self):
            told["seconds"], told["epochs"] = budget.spent(), self.epoch + 1
            super().final_eval()

    def begin(run) -> None:
        run.args.time = (budget.seconds - budget.spent()) / 3600  # what is left of it

    def step(run) -> None:
        told["steps"] += 1
        run.stop = run.stop or budget.is_over()  # its own look at the clock is at every fourth batch

    # A relative path would start from the folder in which the process runs.
    data = options.output.resolve() / "data.yaml"
    listed = (options.task / "yolo" / "data.yaml").read_text()
    data.write_text(listed.replace("path: .", f"path: {(options.task / 'yolo').resolve()}"))
    model = YOLO(MODEL)
    model.add_callback("on_train_start", begin)
    model.add_callback("on_train_batch_end", step)
    model.train(
        trainer=Timed,
        data=str(data),
        time=options.minutes / 60,
        seed=options.seed,
        device="cpu",
        plots=False,
        project=str(options.output.resolve()),
        name="train",
        exist_ok=True,
    )
    more = {"steps": told["steps"], "epochs": told["epochs"], "batch": 16}
    tell_training(options, told["seconds"], **more, versions=versions("ultralytics", "torch", "torchvision"))


def predict(options) -> None:
    from benchmarks import parity  # noqa: F401

    from ultralytics import YOLO  # isort: skip

    names = [c["id"] for c in read(options.task, "train")["categories"]]
    path = options.output / _WEIGHTS
    model = YOLO(path)

    def find(picture: np.ndarray, lowest: float | None = None):
        settings = {"max_det": MAX_DETECTIONS, "retina_masks": True, "device": "cpu"}
        settings |= {"conf": lowest} if lowest else {}
        return model.predict(picture[:, :, ::-1].copy(), verbose=False, **settings)[0]

    def convert(found):
        categories = np.array(names)[found.boxes.cls.numpy().astype(int)]
        masks = np.zeros((0, 1, 1)) if found.masks is None else found.masks.data.numpy()
        return found.boxes.xyxy.numpy(), found.boxes.conf.numpy(), categories, masks > 0.5

    predict_all(options, find, path, convert, _LOWEST, working_score=_SHOWN)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    given = parse()
    {"train": train, "predict": predict}[given.phase](given)
