"""Scores after some hundred steps beside torchvision's, of several seeds: does training end in the same place?

    python -m benchmarks.parity.training --torch_python=PATH --imagenet=FILE.npz --data=FOLDER

One MobileNetV2-FPN, ImageNet weights in its backbone, goes to both sides as torchvision's state dict. Each side trains
it with its own data path, augmentation and loop by one recipe; both are scored by pycocotools. FOLDER has
instances_train.json, instances_dev.json and images/. Exits with 1 where the means of the mask AP are further apart than
the seeds of one side.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks.parity.run import ROOT
from kmaskrcnn.config import Config, groups
from kmaskrcnn.evaluation import score
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.model_folder import load_model
from kmaskrcnn.recipe.recipe import flag_text
from kmaskrcnn.weights.convert import import_file, write_folder

RECIPE = {
    "num_classes": 1,
    "anchor_sizes": [8, 16, 32, 64, 128],
    "min_size": 256,
    "max_size": 320,
    "rpn_pre_nms_top_k": 500,
    "rpn_post_nms_top_k": 300,
    "roi_batch_size": 128,
    "max_detections": 100,
    "batch_size": 2,
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup_steps": 100,
}


def flagfile(folder, recipe):
    """The recipe, and all that torchvision's file says of its model, as flags of ours."""
    same = ("anchor_sizes", "min_size", "max_size", "roi_batch_size", "max_detections", "rpn_pre_nms_top_k")
    settings = {name: recipe[name] for name in (*same, "rpn_post_nms_top_k")}
    settings |= {f"{name}_train": recipe[name] for name in ("rpn_pre_nms_top_k", "rpn_post_nms_top_k")}
    settings["anchor_sizes"] = tuple(settings["anchor_sizes"])
    # Of positives the reference trains all masks; objects beyond 100 would have none.
    settings |= {"max_instances": 400, "score_threshold": 0.05}
    imported = import_file(folder / "model.pth", frozen_stages=0, **settings)
    names = ("batch_size", "learning_rate", "momentum", "weight_decay", "warmup_steps", "steps")
    names += ("train_annotations", "train_images")
    training = {name: recipe[name] for name in names}
    training |= {
        "init_weights": str(write_folder(imported, folder / "start")),
        "schedule": "constant",
        "warmup_factor": 0.0,
        "dtype": "float32",
    }
    config, plain = imported.config.replace(**training), Config()
    lines = []
    for group, members in groups().items():
        pairs = [(name, getattr(getattr(config, group), name)) for name in members]
        lines += [flag_text(n, v) for n, v in pairs if v != getattr(getattr(plain, group), n)]
    (folder / "ours.flags").write_text("\n".join(lines) + "\n")


def train_ours(folder, recipe, seed):
    """COCO results of our program's model after the recipe's steps."""
    own = folder / f"ours-{seed}"
    command = [sys.executable, "train.py", f"--flagfile={folder / 'ours.flags'}", f"--seed={seed}"]
    subprocess.run([*command, f"--model_dir={own}", "--checkpoint_every=100000"], check=True, cwd=ROOT)
    predictor = Predictor(*load_model(own, "last"))
    found, truth = [], json.loads(pathlib.Path(recipe["val_annotations"]).read_text())
    for image in truth["images"]:
        prediction = predictor.predict(str(pathlib.Path(recipe["val_images"]) / image["file_name"]))
        found += prediction.to_coco(image["id"])
    return found


def train_theirs(folder, seed, python):
    """COCO results of torchvision's."""
    command = [python, "-m", "benchmarks.parity.torch_training", "train", str(folder), f"--seed={seed}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return json.loads((folder / f"torch-{seed}.json").read_text())["results"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="a Python with torch, torchvision and pycocotools")
    parser.add_argument("--imagenet", required=True, type=pathlib.Path, help="MobileNetV2's arrays (.npz)")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="folder of the training and validation set")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="a new or empty folder to work in")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    data, folder = options.data.resolve(), options.work.resolve()
    recipe = RECIPE | {"steps": options.steps}
    for name, part in (("train", "train"), ("val", "dev")):
        recipe |= {f"{name}_annotations": str(data / f"instances_{part}.json"), f"{name}_images": str(data / "images")}
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"--work={options.work}: is not empty")
    (folder / "recipe.json").write_text(json.dumps(recipe))
    command = [options.torch_python, "-m", "benchmarks.parity.torch_training", "init", str(folder)]
    subprocess.run([*command, f"--imagenet={options.imagenet.resolve()}"], check=True, cwd=ROOT)
    flagfile(folder, recipe)
    truth = json.loads(pathlib.Path(recipe["val_annotations"]).read_text())
    scores = {"kmaskrcnn": [], "torchvision": []}
    print("| seed | side | box AP | mask AP | mask AP50 | mask AP75 |\n| --- | --- | --- | --- | --- | --- |")
    for seed in range(options.seeds):
        sides = {
            "kmaskrcnn": lambda seed=seed: train_ours(folder, recipe, seed),
            "torchvision": lambda seed=seed: train_theirs(folder, seed, options.torch_python),
        }
        for side, run in sides.items():
            found = run()
            box, mask = (score(truth, found, kind).summary for kind in ("box", "mask"))
            scores[side].append(mask["AP"])
            cells = (box["AP"], mask["AP"], mask["AP50"], mask["AP75"])
            print(f"| {seed} | {side} | {' | '.join(f'{value:.4f}' for value in cells)} |", flush=True)
    spread = max(max(values) - min(values) for values in scores.values())
    means = {side: statistics.mean(values) for side, values in scores.items()}
    distance = abs(means["kmaskrcnn"] - means["torchvision"])
    print(f"mean mask AP {means}; they differ by {distance:.4f}, the seeds of one side by {spread:.4f}")
    return distance > spread


if __name__ == "__main__":
    sys.exit(main())
