"""Export a trained model: `kmaskrcnn export --model_dir=DIR --output=DIR --format=saved_model|tflite|tflite_gpu`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags, trained
from kmaskrcnn.quiet import quiet_litert

FORMAT = absl_flags.DEFINE_enum(
    "format",
    "saved_model",
    ["saved_model", "tflite", "tflite_gpu"],
    "saved_model for TensorFlow Serving, tflite (LiteRT) for the CPU of devices, tflite_gpu for their GPU.",
)
OUTPUT = absl_flags.DEFINE_string(
    "output", "", "saved_model: the folder that gets a numbered version; tflite: the file to write."
)
QUANTIZE = absl_flags.DEFINE_enum(
    "quantize",
    "none",
    ["none", "float16", "dynamic", "int8"],
    "tflite: quantization of the weights; int8 quantizes activations too.",
)
INPUT_SIZES = absl_flags.DEFINE_list(
    "input_sizes",
    [],
    "HEIGHTxWIDTH of the input, multiples of 32. tflite: several with commas between, each a signature; default: "
    "320x320,384x288,288x384. tflite_gpu: one; default: 320x320.",
)
CALIBRATION_IMAGES = absl_flags.DEFINE_list(
    "calibration_images",
    [],
    "int8: images typical of what the model will see (files, folders, globs); up to 100 are used.",
)
FULL_SIZE_MASKS = absl_flags.DEFINE_bool(
    "full_size_masks", False, "saved_model: also return the masks at full image size."
)
MAX_PIXELS = absl_flags.DEFINE_integer(
    "max_pixels", 40_000_000, "saved_model: larger images are refused before they are decoded."
)
MAX_IMAGES = absl_flags.DEFINE_integer("max_images", 16, "saved_model: most images per request.")
MAX_REQUEST_BYTES = absl_flags.DEFINE_integer(
    "max_request_bytes", 64 << 20, "saved_model: most bytes of the encoded images of a request together."
)
COMPACT_MASKS = absl_flags.DEFINE_bool(
    "compact_masks", False, "saved_model: return the masks as a PNG, below 100 kB for 100 objects instead of 300 kB."
)
OPTIMIZE = absl_flags.DEFINE_enum(
    "optimize",
    "none",
    ["none", "latency"],
    "saved_model: latency makes the weights constants: faster, above all without AVX-512, for three times the memory.",
)
VERIFY = absl_flags.DEFINE_bool("verify", True, "Run the exported model on images and compare it with the original.")
VERIFY_IMAGES = absl_flags.DEFINE_list(
    "verify_images",
    [],
    "Images to verify on (files, folders, globs); default: those of the evaluation set, with AP, or others there are.",
)
VERIFY_COUNT = absl_flags.DEFINE_integer("verify_count", 50, "Most images to verify on.", lower_bound=1)
ABOUT = "Export a trained model to SavedModel or .tflite (LiteRT), and verify it in its own runtime."
TOPICS = {
    "Model": trained.TOPIC,
    "Output": ["format", "output"],
    "SavedModel": ["optimize", "full_size_masks", "compact_masks", "max_pixels", "max_images", "max_request_bytes"],
    "TFLite": ["input_sizes", "quantize", "calibration_images"],
    "Verification": ["verify", "verify_images", "verify_count", "val_annotations", "val_images"],
}

_CALIBRATION_COUNT = 100
_DEFAULT_SIZES = {"tflite": [(320, 320), (384, 288), (288, 384)], "tflite_gpu": [(320, 320)]}


def main() -> int:
    """Export and verify; exit code 1 where the artifact differs from the model by more than it may."""
    settings = flags.given_settings()
    trained.check_model(settings)
    if not OUTPUT.value:
        raise ConfigError("--output is missing: the folder or the .tflite file to write")
    for topic, form in (("SavedModel", "saved_model"), ("TFLite", "tflite")):
        if form != FORMAT.value.removesuffix("_gpu"):
            changed = [name for name in TOPICS[topic] if absl_flags.FLAGS[name].value != absl_flags.FLAGS[name].default]
            if changed:
                raise ConfigError(f"--{changed[0]} is for --format={form}")
    if CALIBRATION_IMAGES.value and QUANTIZE.value != "int8":
        raise ConfigError("--calibration_images is for --quantize=int8")
    if FORMAT.value == "tflite_gpu" and QUANTIZE.value not in ("none", "float16"):
        raise ConfigError(f"--quantize={QUANTIZE.value}: --format=tflite_gpu takes none or float16")
    sizes = _input_sizes()
    if FORMAT.value == "tflite_gpu" and len(sizes) > 1:
        raise ConfigError(f"--input_sizes={','.join(INPUT_SIZES.value)}: --format=tflite_gpu takes one")
    for bound in (MAX_PIXELS, MAX_IMAGES, MAX_REQUEST_BYTES):
        if bound.value < 1:
            raise ConfigError(f"--{bound.name}={bound.value}: must be above 0")
    if QUANTIZE.value == "int8" and not CALIBRATION_IMAGES.value:
        raise ConfigError("--quantize=int8 needs --calibration_images: images typical of what the model will see")
    trained.check_folder(settings)
    from kmaskrcnn.export.comparison_images import ComparisonImages, comparison_images, readable
    from kmaskrcnn.export.tflite import MOBILE_SETTINGS, open_output
    from kmaskrcnn.model_folder import load_model
    from kmaskrcnn.progress import phase

    # A server's processor need not know bfloat16.
    fixed = {"dtype": "float32"} if FORMAT.value == "saved_model" else MOBILE_SETTINGS
    if FORMAT.value != "saved_model":
        clash = sorted(name for name in MOBILE_SETTINGS if name in settings)
        if clash:
            raise ConfigError(f"--{clash[0]} is fixed for --format={FORMAT.value}")
    if FORMAT.value != "saved_model":
        open_output(OUTPUT.value)  # a file in the way is told before the work
    folder_of_model = trained.trained_folder(settings)
    settings = trained.with_own_set(settings, folder_of_model)
    with phase("loading the model"):
        model, config, labels = load_model(folder_of_model, trained.WHICH.value, **(fixed | settings))
    if config.evaluation.tile_size or config.evaluation.augmented:
        print("tiles and test-time augmentation are not exported: images are predicted whole, once", flush=True)
    exports = {"saved_model": _export_saved_model, "tflite": _export_tflite, "tflite_gpu": _export_tflite_gpu}
    export = exports[FORMAT.value]
    quiet = contextlib.nullcontext if FORMAT.value == "saved_model" else quiet_litert
    with tempfile.TemporaryDirectory() as folder:
        with phase("reading the images"):
            calibration = []
            if QUANTIZE.value == "int8":
                calibration = readable("calibration_images", CALIBRATION_IMAGES.value, _CALIBRATION_COUNT)
            shown = ComparisonImages([], "none")
            if VERIFY.value:
                given = VERIFY_IMAGES.value
                shown = comparison_images(config, labels, given, calibration, VERIFY_COUNT.value, folder)
        start = time.monotonic()
        print(f"exporting to {FORMAT.value}: this takes about a minute ...", flush=True)
        with quiet():
            path, reference, artifact = export(model, config, labels, shown.paths, calibration)
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        size = sum(file.stat().st_size for file in files) / 1e6
        taken = f", input {_input_sizes_of(path)}" if path.is_file() else ""
        print(f"{path}: {size:.1f} MB{taken}, written in {time.monotonic() - start:.0f} s", flush=True)
        if not VERIFY.value:
            return 0
        from kmaskrcnn.export.verify import bounds_of, verify

        form = "saved_model" if FORMAT.value == "saved_model" else QUANTIZE.value
        bounds = bounds_of(form, config.model.mask_point_rend)
        print(f"comparing it with the model on {shown.about} ...", flush=True)
        with quiet():
            report = verify(shown.paths, reference, artifact(), bounds, shown.truth, shown.drawn)
    print(report)
    return 1 if report.problems else 0


def _input_sizes():
    """(height, width) of the inputs; none for a SavedModel."""
    sizes = []
    for text in INPUT_SIZES.value:
        height, _, width = text.partition("x")
        if not (height.isdecimal() and width.isdecimal()):
            raise ConfigError(f"--input_sizes={text}: expected HEIGHTxWIDTH, for instance 320x320")
        if int(height) % 32 or int(width) % 32 or not int(height) * int(width):
            raise ConfigError(f"input size {height} x {width}: both must be multiples of 32")
        sizes.append((int(height), int(width)))
    return sizes or _DEFAULT_SIZES.get(FORMAT.value, [])


def _input_sizes_of(path):
    """What the inputs of a .tflite take, in words."""
    from kmaskrcnn.export.litert_client import read_metadata

    metadata = read_metadata(path)
    sizes = metadata.get("signatures", {"": metadata["input"]["shape"][1:3]}).values()
    return ", ".join(f"{height} x {width}" for height, width in sizes)


def _export_saved_model(model, config, labels, images, calibration):
    from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
    from kmaskrcnn.inference.predictor import Predictor

    warmup = [Path(path).read_bytes() for path in images[:2]]
    bounds = {"max_pixels": MAX_PIXELS.value, "max_images": MAX_IMAGES.value}
    bounds |= {"max_request_bytes": MAX_REQUEST_BYTES.value}
    masks = {"full_size_masks": FULL_SIZE_MASKS.value, "compact_masks": COMPACT_MASKS.value}
    constant = OPTIMIZE.value == "latency"
    path = export_saved_model(model, config, labels, OUTPUT.value, warmup, **masks, **bounds, constant_weights=constant)
    # An exported model looks at an image once and whole.
    config = config.replace(tile_size=0, tta_flip=False, tta_rotate90=False, tta_scales=())
    return path, Predictor(model, config, labels).predict, lambda: SavedModelClient(path).predict


def _export_tflite(model, config, labels, images, calibration):
    from kmaskrcnn.data import load_image
    from kmaskrcnn.export import tflite
    from kmaskrcnn.export.litert_client import LiteRTClient, letterbox

    sizes, pad = _input_sizes(), tflite.pad_value(config)
    pixels = [load_image(path) for path in calibration]
    typical = [letterbox(image, height, width, pad)[0] for height, width in sizes for image in pixels]
    try:
        content = tflite.convert(model, sizes, QUANTIZE.value, typical)
    except tflite.ExportError as error:
        raise ConfigError(str(error)) from error
    path = Path(OUTPUT.value).expanduser()
    tflite.write(content, path, config, labels, sizes, QUANTIZE.value)
    functions = {size: tflite.MobileFunction(model, *size).serving_default for size in sizes}
    client = LiteRTClient(path)

    def reference(path):
        pixels = load_image(path)
        canvas, scaled = client.letterbox(pixels)
        shape = np.array([scaled], np.int32)
        found = functions[canvas.shape[:2]](canvas[None], shape)
        outputs = {name: np.asarray(value) for name, value in found.items()}
        return client.interpret(outputs, pixels.shape[:2], scaled)

    return path, reference, lambda: lambda path: client.predict(load_image(path))


def _export_tflite_gpu(model, config, labels, images, calibration):
    import tensorflow as tf

    from kmaskrcnn.data import load_image
    from kmaskrcnn.export import gpu_graphs, tflite
    from kmaskrcnn.export.gpu_client import LiteRTGpuClient

    ((height, width),) = _input_sizes()
    try:
        content, checked_by = gpu_graphs.convert(model, height, width, QUANTIZE.value)
    except tflite.ExportError as error:
        raise ConfigError(str(error)) from error
    found = "fully accelerated" if checked_by == "accelerator" else "no GPU here, checked by their operations"
    print(f"graphs {', '.join(gpu_graphs.GRAPHS)}: {found}", flush=True)
    path = Path(OUTPUT.value).expanduser()
    gpu_graphs.write(content, path, model, config, labels, height, width, QUANTIZE.value)
    client = LiteRTGpuClient(path, "gpu" if checked_by == "accelerator" else "cpu")
    detect = tf.function(model, autograph=False)

    def reference(path):
        pixels = load_image(path)
        images, scaled = client.letterbox(pixels)
        batch = {"images": tf.constant(images), "image_shapes": tf.constant([scaled], tf.int32)}
        found = {name: value.numpy()[0] for name, value in detect(batch).items()}
        count = int(found.pop("num_detections"))
        return client.interpret({name: value[:count] for name, value in found.items()}, pixels.shape[:2], scaled)

    return path, reference, lambda: lambda path: client.predict(load_image(path))


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(
        main,
        name,
        arguments,
        ABOUT,
        TOPICS,
    )
