"""Makes tiny.pth, tiny_legacy.pth, tiny.safetensors and tiny.pkl: python tests/golden/make_weight_files.py.

They hold the same tensors (tests/weights/test_pth_reader.py states them) as PyTorch, safetensors and numpy write them.
"""

import collections
import pathlib
import pickle

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def main() -> None:
    base = torch.arange(24, dtype=torch.float32) / 8 - 1
    tensors = collections.OrderedDict(
        float32=base.clone(),
        float16=base.half(),
        bfloat16=base.bfloat16(),
        float64=base.double(),
        int64=torch.arange(-3, 3),
        uint8=torch.arange(5, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(7.5),
        empty=torch.zeros(0, 3),
        transposed=base.clone().reshape(4, 6).t(),
        channels_last=base.clone().reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last),
    )
    shared = base.clone()
    views = {"shared_all": shared, "shared_part": shared[5:20:3], "expanded": shared[2:3].expand(4)}
    parameter = {"parameter": torch.nn.Parameter(base.clone())}
    state = collections.OrderedDict(tensors, **views, **parameter)
    state._metadata = collections.OrderedDict(version=1)  # as nn.Module.state_dict sets it
    checkpoint = {"model": state, "epoch": 3, "optimizer": {"param_groups": [{"lr": 0.1, "params": [0, 1]}]}}
    torch.save(checkpoint, HERE / "tiny.pth")
    torch.save(checkpoint, HERE / "tiny_legacy.pth", _use_new_zipfile_serialization=False)
    contiguous = {name: value.detach().clone().contiguous() for name, value in state.items()}
    save_file(contiguous, HERE / "tiny.safetensors", metadata={"format": "pt"})
    # numpy has no bfloat16.
    arrays = {name: value.numpy() for name, value in contiguous.items() if name != "bfloat16"}
    arrays["transposed"] = arrays["transposed"].T.copy().T
    arrays["scalar"] = arrays["scalar"][()]
    with open(HERE / "tiny.pkl", "wb") as stream:
        pickle.dump({"model": arrays, "__author__": "golden"}, stream, protocol=2)
    with open(HERE / "tiny_protocol5.pkl", "wb") as stream:
        pickle.dump({"model": arrays}, stream, protocol=5)


main()
