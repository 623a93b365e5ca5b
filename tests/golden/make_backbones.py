"""Makes backbones.json: python tests/golden/make_backbones.py, with torch, torchvision, timm and
efficientnet-lite-pytorch.

For each network: its parameter names and shapes, and for each of C2..C5 of a seeded image the shape, mean, deviation
and a few values. The weights are made from the names (seeded.py), so they need not be stored.
"""

import importlib.util
import json
import pathlib

if importlib.util.find_spec("torchvision_cpu"):
    import torchvision_cpu  # noqa: F401  (stand-ins for the GPU libraries of a wheel on a machine without them)
import numpy as np
import timm
import torch
import torchvision
from efficientnet_lite_pytorch import EfficientNet
from seeded import seeded

HERE = pathlib.Path(__file__).parent
# The last module at each stride.
TAPS = {
    "resnet18": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "resnet18d": ("layer1", "layer2", "layer3", "layer4"),
    "resnet50d": ("layer1", "layer2", "layer3", "layer4"),
    "mobilenet_v2": ("features.3", "features.6", "features.13", "features.17"),
    "convnext_tiny": ("stages.0", "stages.1", "stages.2", "stages.3"),
    "mobilenet_v3_large": ("blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "torchvision mobilenet_v3_large": ("features.3", "features.6", "features.12", "features.16"),
    "efficientnet_lite0": ("_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15"),
}


def main() -> None:
    golden = {}
    picture = seeded("picture", (2, 3, 64, 96)) * 10
    for name, taps in TAPS.items():
        if name == "efficientnet_lite0":
            model = EfficientNet.from_name("efficientnet-lite0").eval()
        elif name in ("convnext_tiny", "mobilenet_v3_large") or name.endswith("d"):
            model = timm.create_model({"mobilenet_v3_large": "mobilenetv3_large_100"}.get(name, name)).eval()
        else:
            model = getattr(torchvision.models, name.removeprefix("torchvision "))(weights=None).eval()
        state = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
        model.load_state_dict(
            {key: torch.from_numpy(seeded(key, tuple(value.shape))) for key, value in state.items()}, strict=False
        )
        features = {}
        for level, tap in enumerate(taps, 2):
            model.get_submodule(tap).register_forward_hook(
                lambda module, inputs, output, level=level, features=features: features.update({f"C{level}": output})
            )
        with torch.no_grad():
            model(torch.from_numpy(picture))
        golden[name] = {"tensors": {key: list(value.shape) for key, value in state.items()}, "features": {}}
        for level, value in features.items():
            value = value.permute(0, 2, 3, 1).numpy().astype(np.float64)
            golden[name]["features"][level] = {
                "shape": value.shape,
                "mean": float(value.mean()),
                "std": float(value.std()),
                # One value in each corner of the map and in its middle, at channels 0 and 7.
                "values": value[1][:: value.shape[1] // 2, :: value.shape[2] // 2, (0, 7)].round(6).tolist(),
                "border": value[0, (0, -1), :, 3].round(6).tolist(),
            }
    (HERE / "backbones.json").write_text(json.dumps(golden))


main()
