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

OUTPUTS = ("boxes", "scores", "labels", "masks", "proposals")  # of an image
OPSET = 17
CALIBRATION = 3  # images of which the quantizers take the ranges of activations
WEIGHTS = None


class Graph(torch.nn.Module):
    """The model on images (B, 3, H, W) in 0..1: of each its outputs and the proposals that they come from."""

    def __init__(self, model):
        super().__init__()
        self.model, self.proposals = model, []
        model.rpn.register_forward_hook(lambda _, __, output: self.proposals.append(output[0]))

    def forward(self, images):
        found = self.model(list(images))
        return [
            value
            for own, proposals in zip(found, self.proposals[-1], strict=True)
            for value in (*(own[name] for name in OUTPUTS[:-1]), proposals)
        ]


def made(shape, suffix, make):
    """The path of a file beside the weights for images of a shape (B, H, W), which `make` writes if it is not there."""
    path = WEIGHTS.with_name(f"{WEIGHTS.stem}_{'x'.join(map(str, shape))}{suffix}")
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            make(pathlib.Path(folder) / path.name)
            for file in sorted(pathlib.Path(folder).glob(f"{path.stem}.*")):  # the .bin before its .xml
                file.rename(path.with_name(file.name))
    return path


def images_of(batch, height, width):
    """(B, 3, H, W) in 0..1."""
    return torch.stack(torch_side.images_of(height, width, batch)).numpy()


def calibration_images(shape):
    """As many images as it takes, in batches (B, 3, H, W), none of them timed."""
    batch, height, width = shape
    others = images_of(batch * (1 + CALIBRATION), height, width)[batch:]
    return others.reshape(CALIBRATION, batch, *others.shape[1:])


def exported(shape):
    """The graph for images of this shape (B, H, W), with masks of 28 x 28."""

    def make(path):
        graph = Graph(torch_side.make_model(*shape[1:], paste=False))
        outputs = [f"{name}{image}" for image in range(shape[0]) for name in OUTPUTS]
        names = {"input_names": ["images"], "output_names": outputs}
        images = torch.from_numpy(images_of(*shape))
        with torch.inference_mode():
            torch.onnx.export(graph, (images,), str(path), dynamo=False, opset_version=OPSET, **names)

    return made(shape, ".onnx", make)


def quantized_onnx(shape):
    """The same by ONNX Runtime's static quantization: QDQ, a scale for each output channel."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._batches = iter(calibration_images(shape))

        def get_next(self):
            images = next(self._batches, None)
            return None if images is None else {"images": images}

    def make(path):
        prepared = path.with_name("prepared.onnx")
        quant_pre_process(exported(shape), prepared, skip_symbolic_shape=True)
        # Without the arithmetic of boxes, which needs its digits.
        quantize_static(prepared, path, Reader(), per_channel=True, op_types_to_quantize=["Conv", "Gemm", "MatMul"])

    return made(shape, "_int8.onnx", make)


def quantized_openvino(shape):
    """The same by NNCF for OpenVINO."""
    import nncf
    from openvino import Core, save_model

    def make(path):
        # Read back, since nodes that nothing uses, which NNCF stumbles over, go at that.
        plain = path.with_name("plain.xml")
        save_model(Core().read_model(exported(shape)), plain, compress_to_fp16=False)
        images = nncf.Dataset(calibration_images(shape))
        save_model(nncf.quantize(Core().read_model(plain), images), path, compress_to_fp16=False)

    return made(shape, "_int8.xml", make)


def onnxruntime(shape, int8):
    """A function from images to the outputs."""
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = (quantized_onnx if int8 else exported)(shape)
    session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def openvino(shape, int8):
    """A function from images to the outputs."""
    from openvino import Core

    path = (quantized_openvino if int8 else exported)(shape)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = Core().compile_model(path, "CPU", settings | {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda images: tuple(compiled([images]).values())


def inference(runtime, height, width, batch, dtype, paste):
    """The graph on a batch."""
    assert dtype == "float32" and not paste
    library, _, bits = runtime.partition("-")
    run = {"onnxruntime": onnxruntime, "openvino": openvino}[library]((batch, height, width), bits == "int8")
    images = images_of(batch, height, width)
    values = [np.array(value) for value in run(images)]
    run(images)
    found = [values[start : start + len(OUTPUTS)] for start in range(0, len(values), len(OUTPUTS))]
    told = {
        "proposals": [len(own[-1]) for own in found],
        "detections": [len(own[0]) for own in found],
        "found": torch_side.detections_of(*found[0][:-1]),
    }
    return (lambda: run(images) and None), told


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
