"""What the stored form of ground-truth masks costs: IoU with the full mask by resolution, and the host's memory.

python benchmarks/mask_representation.py --annotations=instances.json [--images=FOLDER]
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image
from pycocotools.coco import COCO

sys.path.insert(0, str(Path(__file__).parents[1]))

from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, load_coco, training_dataset
from kmaskrcnn.results.mask_paste import paste_mask

_ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO JSON.", required=True)
_IMAGES = flags.DEFINE_string("images", "", "Folder of its images; empty: that of the JSON.")
_RESOLUTIONS = (28, 56, 112, 224)
_AREAS = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, float("inf")))


def iou_table(dataset: CocoDataset) -> dict[str, dict[int, np.ndarray]]:
    """IoU of every instance's stored mask, pasted back, with its full mask, by COCO area and resolution."""
    coco = COCO()
    coco.dataset = dataset.coco_dict
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    full = [coco.annToMask(coco.anns[a["id"]]).astype(bool) for a in coco.dataset["annotations"]]
    areas = np.array([mask.sum() for mask in full])
    table: dict[str, dict[int, np.ndarray]] = {name: {} for name, _, _ in _AREAS}
    rows = np.arange(len(full))
    for resolution in _RESOLUTIONS:
        values = np.zeros(len(full))
        for row in rows:
            stored = dataset.masks(rows[row : row + 1], resolution)[0] / 255
            pasted = paste_mask(stored, dataset.frames[row], *full[row].shape)
            values[row] = (pasted & full[row]).sum() / max((pasted | full[row]).sum(), 1)
        for name, low, high in _AREAS:
            table[name][resolution] = values[(areas >= low) & (areas < high)]
    return table


def peak_of_large_batches() -> tuple[float, float]:
    """Peak resident memory in MB before and after 20 batches of two 1333 x 800 images with 100 instances each."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        tree: dict = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
        for i in range(1, 9):
            pixels = np.repeat(np.repeat(rng.integers(0, 255, (100, 167, 3), np.uint8), 8, 0), 8, 1)[:800, :1333]
            Image.fromarray(pixels).save(f"{folder}/{i}.jpg")
            tree["images"].append({"id": i, "file_name": f"{i}.jpg", "height": 800, "width": 1333})
            for _ in range(100):
                w, h = rng.uniform(20, 400, 2)
                x, y = rng.uniform(0, 1333 - w), rng.uniform(0, 800 - h)
                polygon = [x, y, x + w, y, x + w, y + h, x + w / 2, y + h / 2, x, y + h]
                common = {"id": len(tree["annotations"]) + 1, "image_id": i, "category_id": 1, "iscrowd": 0}
                tree["annotations"].append({**common, "bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon]})
        Path(folder, "instances.json").write_text(json.dumps(tree))
        dataset = load_coco(f"{folder}/instances.json")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for batch in training_dataset(dataset, Config().data, 2, seed=0).take(20):
            assert int((batch["classes"] > 0).numpy().sum()) == 200
        return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(_: list[str]) -> None:
    """Print both tables."""
    before, after = peak_of_large_batches()
    print(f"{'m':>4} {'bytes for 2 x 100 masks':>24}")
    for resolution in _RESOLUTIONS:
        print(f"{resolution:>4} {2 * 100 * resolution**2 / 1e6:>21.1f} MB")
    print(f"20 batches of 2 images of 1333 x 800 with 100 instances each at m = 112: {after - before:.0f} MB more")
    print(f"resident at the peak than before ({before:.0f} MB, most of it TensorFlow)")
    dataset = load_coco(_ANNOTATIONS.value, _IMAGES.value, "skip")
    print(f"\n{'mean IoU (5th percentile)':<28}" + "".join(f"{f'm = {r}':>17}" for r in _RESOLUTIONS))
    for name, row in iou_table(dataset).items():
        cells = [f"{v.mean():.3f} ({np.percentile(v, 5):.3f})" if v.size else "-" for v in row.values()]
        print(f"{name:<10}{row[_RESOLUTIONS[0]].size:>6} instances  " + "".join(f"{c:>17}" for c in cells))


if __name__ == "__main__":
    app.run(main)
