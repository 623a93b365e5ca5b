"""RF-DETR-Seg-Nano from random weights by its defaults; the average of the weights, which it evaluates, is used.

Its own weights come from a server and would know the classes of COCO. A tenth of the training images is its validation
set, as for Ultralytics; nothing is chosen by it, since the budget ends before its first hundred epochs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from benchmarks.leaderboard.side import Budget, parse, predict_all, read, tell_training, versions

os.environ["HF_HUB_OFFLINE"] = "1"
_LOWEST = 0.001  # of the scores that enter AP
_SHOWN = 0.5  # its default for prediction


def write_set(task: Path, folder: Path) -> None:
    """The training images as the package reads them: train/, valid/ and test/ with an annotation file each."""
    for name, part in (("train", "yolo_train"), ("valid", "yolo_val"), ("test", "yolo_val")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        tree = read(task, part)
        (folder / name / "_annotations.coco.json").write_text(json.dumps(tree))
        for image in tree["images"]:
            link = folder / name / image["file_name"]
            if not link.exists():
                link.symlink_to((task / "images" / image["file_name"]).resolve())


def build(classes: int):
    """The model without its weights."""
    from benchmarks import parity  # noqa: F401  makes torchvision importable

    from rfdetr import RFDETRSegNano  # isort: skip

    return RFDETRSegNano(pretrain_weights=None, num_classes=classes, device="cpu")


def train(options) -> None:
    budget = Budget(options.minutes)
    categories = read(options.task, "train")["categories"]
    model = build(len(categories))
    from pytorch_lightning import Callback
    from rfdetr import training
    from rfdetr.training.callbacks.ema import RFDETREMACallback

    told: dict[str, float] = {"steps": 0}

    class Clock(Callback):
        """Ends the run with the budget; validation is outside of it."""

        def on_train_batch_end(self, trainer, *_) -> None:
            told["steps"] += 1
            told["seconds"] = budget.spent()
            trainer.should_stop = trainer.should_stop or budget.is_over()

        def on_validation_start(self, *_) -> None:
            self.pause = budget.paused()
            self.pause.__enter__()

        def on_validation_end(self, *_) -> None:
            self.pause.__exit__(None, None, None)

        def on_fit_end(self, trainer, module) -> None:
            average = next(c for c in trainer.callbacks if isinstance(c, RFDETREMACallback)).get_ema_model_state_dict()
            module.model.load_state_dict(average)

    def with_clock(*arguments, make=training.build_trainer, **keywords):
        trainer = make(*arguments, **keywords)
        trainer.callbacks.insert(0, Clock())
        return trainer

    training.build_trainer = with_clock
    write_set(options.task, options.output / "set")
    settings = {"num_workers": 0, "tensorboard": False, "seed": options.seed, "device": "cpu"}
    model.train(dataset_dir=str(options.output / "set"), output_dir=str(options.output / "run"), **settings)
    import torch

    torch.save(model.model.model.state_dict(), options.output / "model.pth")
    tell_training(options, told["seconds"], steps=told["steps"], batch=4, versions=versions("rfdetr", "torch"))


def predict(options) -> None:
    import torch

    ids = np.array([c["id"] for c in read(options.task, "train")["categories"]])
    model, path = build(len(ids)), options.output / "model.pth"
    model.model.model.load_state_dict(torch.load(path))

    def find(picture: np.ndarray, lowest: float = _SHOWN):
        return model.predict(picture, threshold=lowest)

    def convert(found):
        known = found.class_id < len(ids)  # the last output stands for no object
        masks = np.zeros((0, 1, 1)) if found.mask is None else found.mask
        return found.xyxy[known], found.confidence[known], ids[found.class_id[known]], masks[known]

    predict_all(options, find, path, convert, _LOWEST, working_score=_SHOWN)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    given = parse()
    {"train": train, "predict": predict}[given.phase](given)
