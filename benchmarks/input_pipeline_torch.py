"""The torch side of `input_pipeline`: torchvision's CocoDetection, transforms v2 and torch's DataLoader.

    python input_pipeline_torch.py ANNOTATIONS IMAGES flip|full SECONDS

Prints images a second and the CPU seconds of an image (Linux only). The transforms are those of torchvision's own
detection references where these have them.
"""

import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import sys
import time

import torch
from PIL import Image

with contextlib.suppress(ImportError):
    import torchvision_cpu  # noqa: F401  (an environment whose torchvision was built for CUDA)
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

BATCH, WARMUP = 2, 4


class Jpeg(v2.Transform):
    """v2.JPEG through Pillow, since not every build of torchvision has its own JPEG functions."""

    def make_params(self, flat_inputs):
        return {"quality": int(torch.randint(25, 80, ()))}

    def transform(self, inpt, params):
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        buffer = io.BytesIO()
        v2.functional.to_pil_image(inpt).save(buffer, "JPEG", quality=params["quality"])
        return tv_tensors.wrap(v2.functional.pil_to_tensor(Image.open(buffer)), like=inpt)


def transforms(name):
    resize = v2.RandomShortestSize([800], max_size=1333, antialias=True)
    tail = [v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
    if name == "flip":
        return v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(0.5), resize, *tail])
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomApply([v2.RandomIoUCrop(min_scale=0.35)], 0.5),
            resize,
            v2.RandomRotation(10),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomVerticalFlip(0.5),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.RandomApply([v2.GaussianBlur(13, (0.4, 2.0))], 0.3),
            v2.RandomApply([Jpeg()], 0.3),
            *tail,
        ]
    )


def cpu_seconds():
    """CPU time of this process and of the loader's, which still run."""
    stats = [pathlib.Path(f"/proc/{p.pid}/stat").read_text() for p in multiprocessing.active_children()]
    # User and system time are the fields 14 and 15, counted from the state (3) behind the name in parentheses.
    ticks = sum(int(ticks) for stat in stats for ticks in stat.rpartition(")")[2].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main():
    annotations, images, name, seconds = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        dataset = torchvision.datasets.CocoDetection(images, annotations, transforms=transforms(name))
    dataset = torchvision.datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))
    # Images without objects have no boxes for the transforms to read, and torchvision's references leave them out too.
    with_objects = [i for i, number in enumerate(dataset.ids) if dataset.coco.getAnnIds(number)]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(dataset, with_objects),
        batch_size=BATCH,
        shuffle=True,
        num_workers=os.cpu_count(),
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
        persistent_workers=True,
    )

    def endless():
        while True:
            yield from loader

    batches = endless()
    for _ in range(WARMUP):
        next(batches)
    start, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - start < float(seconds):
        count += len(next(batches)[0])
    print(json.dumps([count / (time.perf_counter() - start), (cpu_seconds() - cpu) / count]))


if __name__ == "__main__":
    main()
