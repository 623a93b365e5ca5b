"""torchvision's side, run by `run.py`; prints its figures as JSON. `--make` writes the weights that both start from."""

import contextlib
import itertools
import json
import statistics
import time

from benchmarks import parity  # noqa: F401  makes torchvision importable
from benchmarks.gpu import workload
from benchmarks.parity.torch_models import build, calibrate
from benchmarks.speed.workloads import peak_memory_mb

import numpy as np  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip


def make(path):
    """Write a state dict under which a thousand proposals an image survive."""
    torch.manual_seed(0)
    model = build("r50_fpn", 1000)
    calibrate(model, [(512, 672), (512, 672)])
    torch.save(model.state_dict(), path)


def on_host(images, rows, pinned):
    """A batch as torchvision trains on it: masks of whole images."""

    def tensor(array):
        return torch.from_numpy(array).pin_memory() if pinned else torch.from_numpy(array)

    targets = [
        {
            "boxes": tensor(boxes[:, [1, 0, 3, 2]].copy()),
            "labels": tensor(classes.astype(np.int64)),
            "masks": tensor(masks.astype(np.uint8)),
        }
        for boxes, classes, masks in rows
    ]
    return [tensor(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images], targets


def main():
    options = workload.parse()
    if options.make:
        make(options.weights)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build("r50_fpn", 1000)
    model.load_state_dict(torch.load(options.weights))
    short, long = sorted((options.height, options.width))
    model.transform.min_size, model.transform.max_size = (short,), long  # leaves the pictures as they are
    model.to(device).train()
    if options.channels_last:
        model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9)
    half = options.dtype == "bfloat16"
    rois = []
    model.roi_heads.mask_head.register_forward_hook(lambda _, inputs, __: rois.append(len(inputs[0])))
    data = [on_host(*batch, device.type == "cuda") for batch in workload.batches(options)]
    loss = None

    def step(images, targets):
        images = [image.to(device, non_blocking=True).float() / 255 for image in images]
        targets = [{k: v.to(device, non_blocking=True) for k, v in target.items()} for target in targets]
        with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
            total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    begin, first, seconds, losses = time.perf_counter(), 0.0, 0.0, []
    for _ in range(2):  # the first epoch warms up
        losses, start = [], time.perf_counter()
        for batch in itertools.islice(itertools.cycle(data), options.steps):
            loss = step(*batch)
            losses.append(loss.detach())
            if not first:
                wait()
                first = time.perf_counter() - begin
        wait()
        seconds = time.perf_counter() - start
    figures = {
        "backend": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
        "dtype": f"{options.dtype} by autocast" if half else options.dtype,
        "images_a_second": options.batch * options.steps / seconds,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else peak_memory_mb() / 1e3,
        "mask_rois": round(statistics.mean(rois)),
        "first_step_seconds": first,
        "loss": statistics.mean(map(float, losses)),
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
