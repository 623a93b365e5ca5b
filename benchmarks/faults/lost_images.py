"""Images that are deleted or damaged while training: the steps stay a function of seed and step."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.faults import Row, tally
from benchmarks.faults.training_runs import is_step, start
from kmaskrcnn.cluster import Cluster
from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, open_dataset
from kmaskrcnn.training.batches import Batches

IMAGES, STEPS = 12, 12


def config_in(folder: Path) -> Config:
    """A small set with copy-paste, whose images are read beside their turn, too."""
    return Config().replace(
        model_dir=str(folder),
        train_annotations="shapes",
        shapes_images=IMAGES,
        shapes_size=64,
        crop_size=64,
        resize_mode="native",
        mask_resolution=14,
        max_instances=8,
        batch_size=2,
        copy_paste_probability=0.5,
        on_bad_record="skip",
        data_threads=2,
    )


def take(train_set: CocoDataset, config: Config, steps: range, slots: range) -> list[dict[str, np.ndarray]]:
    """The batches of some steps, by a process that has found nothing yet."""
    batches = Batches(train_set, config, Cluster(tf.distribute.get_strategy()), [slots])
    batches.start(steps.start)
    return [{name: value.numpy() for name, value in batches.take(step)[0].items()} for step in steps]


def hurt(path: Path, rng: random.Random) -> None:
    """Delete an image, or damage its pixels behind the header."""
    data = bytearray(path.read_bytes())
    how = rng.choice(["deleted", "emptied", "cut", "a byte changed"])
    if how == "deleted":
        path.unlink()
    elif how == "a byte changed":
        data[len(data) // 2] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    else:
        path.write_bytes(data[: 0 if how == "emptied" else len(data) // 2])


def try_one(folder: Path, number: int) -> str:
    """Some images are lost; what differs between one run, one that goes on and two workers, or nothing."""
    rng = random.Random(number)
    config = config_in(folder)
    train_set = open_dataset(config, "train")
    paths = sorted((folder / "shapes" / "train").rglob("*.png"))
    for path in rng.sample(paths, rng.randint(1, IMAGES // 2)):
        hurt(path, rng)
    whole = take(train_set, config, range(STEPS), range(2))
    middle = rng.randrange(1, STEPS)
    later = take(train_set, config, range(middle, STEPS), range(2))
    workers = [take(train_set, config, range(STEPS), range(w, w + 1)) for w in range(2)]
    both = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*workers, strict=True)]
    for what, ours, others in (("one that was resumed", whole[middle:], later), ("two workers", whole, both)):
        for a, b in zip(ours, others, strict=True):
            apart = [name for name in a if not np.array_equal(a[name], b[name])]
            if apart:
                return f"number {number}: {what} had other {apart[0]}"
    shutil.rmtree(folder)
    return ""


def one_run(folder: Path) -> str:
    """A whole training that loses an image on its way; what went wrong, or nothing."""
    run = start(folder, "--steps=20", "--on_bad_record=skip")
    if not run.wait_for(is_step):
        run.end(0)
        return f"no step: {run.text[-300:]}"
    for path in sorted((folder / "shapes" / "train").rglob("*.png"))[:2]:
        path.write_bytes(path.read_bytes()[:60])
    code = run.end()
    told = [line for line in run.output if "another image of the epoch takes its place" in line]
    return "" if code == 0 and len(told) == 2 else f"code {code}, {len(told)} of 2 told: {run.text[-300:]}"


def run(count: int, folder: Path) -> list[Row]:
    """`count` sets that lose images, and one whole training."""
    wrong = [found for number in range(count) if (found := try_one(folder / str(number), number))]
    if problem := one_run(folder / "run"):
        wrong.append(problem)
    right = "named and replaced; a resumed run and two workers take the same steps, bit for bit"
    return [tally("images lost while training", wrong, count + 1, right)]
