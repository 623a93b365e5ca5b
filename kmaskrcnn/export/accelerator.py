"""Whether a .tflite runs on LiteRT's GPU accelerator as a whole: asked of the accelerator where there is one."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# What LiteRT 2.3's WebGPU accelerator was seen to take, for where it cannot be asked.
OPERATIONS = frozenset(
    "ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE FULLY_CONNECTED GELU HARD_SWISH LOGISTIC "
    "MAX_POOL_2D MEAN MUL NEG PAD RELU RELU6 RESHAPE RSQRT SOFTMAX SQUARED_DIFFERENCE STRIDED_SLICE SUB "
    "TRANSPOSE_CONV".split()
)


# What the accelerator's log says once it has a GPU, or a driver that does without.
_ADAPTER = "Selected adapter"


class AcceleratorError(RuntimeError):
    """A graph, or a part of it, is not taken by the accelerator."""


def check_accelerated(content: bytes) -> str:
    """Make sure that every operation of every signature runs on the GPU.

    Returns:
        By what: "accelerator" where LiteRT's was asked, "operations" where there is none (no ai-edge-litert 2.3, or no
        Vulkan driver) and the operations were compared with those that it is known to take.

    Raises:
        AcceleratorError: an operation would not run there.
    """
    from kmaskrcnn.export import flatbuffer

    unknown = flatbuffer.unknown_sizes(content)
    if unknown:
        raise AcceleratorError(f"not for a GPU: {len(unknown)} tensors of unknown size, among them {unknown[0]}")
    answer = ask_accelerator(content)
    if answer is None:
        others = sorted(set(flatbuffer.operations(content)) - OPERATIONS)
        if others:
            raise AcceleratorError(f"not known to run on a GPU: {', '.join(others)}")
        return "operations"
    if not answer.get("fully_accelerated"):
        reason = answer.get("error") or "a part of it would run on the CPU"
        raise AcceleratorError(f"the GPU accelerator does not take the graphs whole: {reason}")
    return "accelerator"


def ask_accelerator(content: bytes) -> dict | None:
    """What the accelerator says of a flatbuffer: {"fully_accelerated": bool} or {"error": text}; None where none is.

    In a process of its own: a driver that fails may take its process with it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        command = [sys.executable, "-m", "kmaskrcnn.export.accelerator", str(path)]
        root = str(Path(__file__).parents[2])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    if _ADAPTER not in result.stderr:
        return None
    lines = result.stderr.splitlines()
    refused = [after for line, after in itertools.pairwise(lines) if "operations are not supported" in line]
    # Of other devices' plugins, which are not there, the log says ERROR too.
    errors = [line for line in lines if ("ERROR" in line or line.startswith("E0")) and "plugin" not in line]
    return {"error": next(iter(refused + errors), f"its process ended with {result.returncode}")}


def _main(path: str) -> None:
    from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options

    options = Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=True))
    model = CompiledModel.from_file(path, options=options)
    print(json.dumps({"fully_accelerated": model.is_fully_accelerated()}), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
