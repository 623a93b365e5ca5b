"""torchvision's model as a graph of ONNX in another runtime, run by `run.py`.

    python -m benchmarks.speed.graph_side WEIGHTS RUNTIME

RUNTIME is onnxruntime or openvino, with -int8 behind it for a graph that is quantized first. Graphs lie beside WEIGHTS
and are used again if there.
"""

import importlib.metadata
import pathlib
import sys
import tempfile

from benchmarks.speed import torch_side, workloads

import numpy as np  # isort: skip
import torch  # isort: skip

OUTPUTS = ("boxes", "scores", "labels", "masks")
OPSET = 17
CALIBRATION = 3  # images of which the quantizers take the ranges of activations
WEIGHTS = None


class Graph(torch.nn.Module):
    """The model on one image (3, H, W) in 0..1: its outputs, and the proposals that they come from."""

    def __init__(self, model):
        super().__init__()
        self.model, self.proposals = model, []
        model.rpn.register_forward_hook(lambda _, __, output: self.proposals.append(output[0][0]))

    def forward(self, image):
        found = self.model([image])[0]
        return *(found[name] for name in OUTPUTS), self.proposals[-1]


def made(height, width, suffix, make):
    """The path of a file beside the weights, which `make` writes if it is not there."""
    path = WEIGHTS.with_name(f"{WEIGHTS.stem}_{height}x{width}{suffix}")
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            make(pathlib.Path(folder) / path.name)
            for file in sorted(pathlib.Path(folder).glob(f"{path.stem}.*")):  # the .bin before its .xml
                file.rename(path.with_name(file.name))
    return path


def images_of(height, width, count):
    """(count, 3, H, W) in 0..1; the first is the one that is timed."""
    return torch.stack(torch_side.images_of(height, width, count)).numpy()


def calibration_images(height, width):
    return images_of(height, width, 1 + CALIBRATION)[1:]


def exported(height, width):
    """The graph for images of this size, with masks of 28 x 28."""

    def make(path):
        graph = Graph(torch_side.make_model(height, width, paste=False))
        image = torch.from_numpy(images_of(height, width, 1)[0])
        names = {"input_names": ["image"], "output_names": [*OUTPUTS, "proposals"]}
        with torch.inference_mode():
            torch.onnx.export(graph, (image,), str(path), dynamo=False, opset_version=OPSET, **names)

    return made(height, width, ".onnx", make)


def quantized_onnx(height, width):
    """The same by ONNX Runtime's static quantization: QDQ, a scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._images = iter(calibration_images(height, width))

        def get_next(self):
            image = next(self._images, None)
            return None if image is None else {"image": image}

    def make(path):
        prepared = path.with_name("prepared.onnx")
        quant_pre_process(exported(height, width), prepared, skip_symbolic_shape=True)
        # Without the arithmetic of boxes, which needs its digits.
        quantize_static(prepared, path, Reader(), per_channel=True, op_types_to_quantize=["Conv", "Gemm", "MatMul"])

    return made(height, width, "_int8.onnx", make)


def quantized_openvino(height, width):
    """The same by NNCF for OpenVINO."""
    import nncf
    from openvino import Core, save_model

    def make(path):
        # Read back, since nodes that nothing uses, which NNCF stumbles over, go at that.
        plain = path.with_name("plain.xml")
        save_model(Core().read_model(exported(height, width)), plain, compress_to_fp16=False)
        images = nncf.Dataset(calibration_images(height, width))
        save_model(nncf.quantize(Core().read_model(plain), images), path, compress_to_fp16=False)

    return made(height, width, "_int8.xml", make)


def onnxruntime(height, width, int8):
    """A function from an image to the outputs."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = (quantized_onnx if int8 else exported)(height, width)
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def openvino(height, width, int8):
    """A function from an image to the outputs."""
    from openvino import Core

    path = (quantized_openvino if int8 else exported)(height, width)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(path, "CPU", settings | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda image: tuple(compiled([image]).values())


def inference(runtime, height, width, batch, dtype, paste):
    """The graph on one image."""
    assert batch == 1 and dtype == "float32" and not paste
    library, _, bits = runtime.partition("-")
    run = {"onnxruntime": onnxruntime, "openvino": openvino}[library](height, width, bits == "int8")
    image = images_of(height, width, 1)[0]
    *found, proposals = (np.array(value) for value in run(image))
    run(image)
    told = {
        "proposals": [len(proposals)],
        "detections": [len(found[0])],
        "found": torch_side.detections_of(*found),
    }
    return (lambda: run(image) and None), told


def main():
    global WEIGHTS
    WEIGHTS, runtime = pathlib.Path(sys.argv[1]), sys.argv[2]
    torch_side.load_weights(WEIGHTS)
    packages = ("onnx", "onnxruntime") if runtime.startswith("onnxruntime") else ("openvino", "nncf")
    versions = {name: importlib.metadata.version(name) for name in packages}
    kinds = {"inference": inference}
    workloads.serve(lambda kind, **arguments: kinds[kind](runtime, **arguments), versions)


if __name__ == "__main__":
    main()
