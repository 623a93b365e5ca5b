"""Mutated image files through the encoded-image signature: python -m tests.export.fuzz --count=10000.

The model runs in a process of its own. One that dies, hangs or grows past the limit ends the run with exit code 1 and
the batch that did it, which --first repeats. In each batch there is one whole image among the others; all that can be
read must be answered bit for bit as without those that cannot.
"""

import argparse
import collections
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BATCH = 20
SECONDS_A_BATCH = 60
MAX_PIXELS = 200_000
SIDE = 32


def mutate(rng, sources):
    """(kind of mutation, bytes): one of the source files, changed."""
    data = bytearray(sources[rng.integers(len(sources))])
    kind = ("truncated", "bits flipped", "header", "pieces", "random bytes", "spliced", "long tail")[rng.integers(7)]
    if kind == "truncated":
        del data[rng.integers(len(data)) :]
    elif kind == "bits flipped":
        for position in rng.integers(0, len(data), rng.integers(1, 20)):
            data[position] ^= 1 << rng.integers(8)
    elif kind == "header":
        # Sizes, lengths and marks lie in the first bytes, and extreme values are the ones that break readers.
        start, count = rng.integers(0, min(len(data), 256)), rng.integers(1, 9)
        data[start : start + count] = [rng.bytes(count), b"\0" * count, b"\xff" * count][rng.integers(3)]
    elif kind == "pieces":
        start, stop = sorted(rng.integers(0, len(data), 2))
        piece = data[start:stop]
        data[start:stop] = piece * rng.integers(2, 5) if rng.random() < 0.5 else b""
    elif kind == "random bytes":
        keep = rng.integers(0, 40)
        data[keep:] = rng.bytes(rng.integers(0, 400))
    elif kind == "long tail":
        data += bytes(int(rng.integers(1, 3_000_000)))
    else:
        other = sources[rng.integers(len(sources))]
        data[rng.integers(len(data)) :] = other[rng.integers(len(other)) :]
    return kind, bytes(data)


def batch_of(number, seed, sources):
    """The mutated files of a batch, the same each time."""
    rng = np.random.default_rng([seed, number])
    return [mutate(rng, sources) for _ in range(BATCH)]


def export_small_model(folder):
    """A SavedModel of random weights that a batch takes a fraction of a second in; returns its folder."""
    import keras

    from kmaskrcnn import MaskRCNN
    from kmaskrcnn.config import Config
    from kmaskrcnn.export.saved_model import export_saved_model
    from tests.conftest import TINY
    from tests.export.conftest import LABELS

    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0, "fpn_channels": 8, "rpn_post_nms_top_k": 8, "max_detections": 3}
    config = Config().replace(**settings, min_size=SIDE, max_size=SIDE)
    return export_saved_model(MaskRCNN(**settings), config, LABELS, folder, max_pixels=MAX_PIXELS, max_images=BATCH + 1)


def sources():
    """Whole files of every kind, with EXIF blocks among them."""
    from tests.export.images import formats, picture, with_exif

    turned = [with_exif(picture(40, 60), 6, kind, order) for kind in ("JPEG", "PNG", "WEBP") for order in "<>"]
    return [data for _, data in formats()] + turned


def run_model(saved_model, first, count, seed):
    """The process that runs the model: says which batch begins, then how each of its images ended."""
    import tensorflow as tf

    from tests.export.images import encode, picture

    function = tf.saved_model.load(saved_model).signatures["serving_default"]
    whole, files = encode(picture(50, 60)), sources()
    for number in range(first, first + -(-count // BATCH)):
        print(f"begin {number}", flush=True)
        kinds, images = zip(*batch_of(number, seed, files), strict=True)
        images = [*images, whole]
        outputs = {n: x.numpy() for n, x in function(image_bytes=tf.constant(images)).items()}
        for kind, error, found in zip(kinds, outputs["image_errors"], outputs["num_detections"], strict=False):
            if error and found:
                raise AssertionError(f"{found} objects in an image that was left out")
            print(f"image {kind}: {error.decode() or 'decoded'}")
        for name, values in outputs.items():
            if values.dtype == np.float32 and not np.isfinite(values).all():
                raise AssertionError(f"{name} is not finite")
        good = np.flatnonzero(outputs["image_errors"] == b"")
        if len(images) - 1 not in good:
            raise AssertionError("the whole image was left out")
        without = function(image_bytes=tf.constant([images[i] for i in good]))
        for name, values in outputs.items():
            np.testing.assert_array_equal(values[good], without[name].numpy(), err_msg=name)
    print("end", flush=True)  # what is left of the time is TensorFlow's own end, and no batch's


def _memory(pid):
    """Resident megabytes of a process, 0 once it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError):
        return 0.0


def watch(command, max_growth):
    """Run the process of the model; returns outcome counts, what went wrong ("" for nothing), and memory in MB.

    Args:
        command: the process.
        max_growth: megabytes that it may take beyond what it had before its first batch.
    """
    outcomes, batch, start, peak, problem = collections.Counter(), None, 0.0, 0.0, ""
    lines = queue.Queue()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

        def read():
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        begun = time.monotonic()
        while not problem:
            try:
                line = lines.get(timeout=0.05)
            except queue.Empty:
                line = ""
            if line is None:
                break
            word, _, rest = line.strip().partition(" ")
            if word == "begin":
                batch, begun = int(rest), time.monotonic()
                start = start or _memory(process.pid)
            elif word == "end":
                begun = time.monotonic()
            elif word == "image":
                outcomes[rest] += 1
            peak = max(peak, _memory(process.pid))
            if batch is not None and time.monotonic() - begun > SECONDS_A_BATCH:
                problem = f"batch {batch} took more than {SECONDS_A_BATCH} s"
            if start and peak - start > max_growth:
                problem = f"batch {batch} took {peak - start:.0f} MB"
        if problem:
            process.kill()
        process.wait()
        errors.seek(0)
        if not problem and process.returncode:
            problem = f"batch {batch} ended the process with {process.returncode}: {errors.read()[-1500:]}"
    return outcomes, problem, (start, peak)


def try_files(saved_model, count, seed=0, first=0, max_growth=500.0):
    """Run mutated files through a model in a process of its own; returns what `watch` does."""
    command = [sys.executable, "-m", "tests.export.fuzz", "--child", f"--saved_model={saved_model}"]
    return watch([*command, f"--count={count}", f"--seed={seed}", f"--first={first}"], max_growth)


def main():
    """Export a small model, run the files, print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="mutated files, rounded up to whole batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first batch")
    parser.add_argument("--max_growth", type=float, default=500, help="megabytes that the process may grow by")
    parser.add_argument("--saved_model", default="", help="run this one; default: a small model made for the purpose")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_model(options.saved_model, options.first, options.count, options.seed)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        saved_model = options.saved_model or export_small_model(folder)
        result = try_files(saved_model, options.count, options.seed, options.first, options.max_growth)
    outcomes, problem, (start, peak) = result
    totals = collections.Counter()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7d}  {outcome}")
        totals[outcome.partition(": ")[2]] += count
    print(f"{sum(totals.values())} mutated files: {', '.join(f'{n} {name}' for name, n in totals.most_common())}")
    print(f"{time.monotonic() - begun:.0f} s, {start:.0f} MB before the first batch, {peak:.0f} MB at the peak")
    if problem:
        print(f"FAILED: {problem} (--seed={options.seed} --first=N repeats a batch)")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
