"""mmdetection's MaskIoUHead on what `run_mmdetection` wrote: python mmdetection_side.py FOLDER.

Its own environment has torch, mmdet, mmengine and mmcv or mmcv-lite. The head uses none of mmcv's compiled operators,
which mmcv-lite lacks and mmdet imports: they are replaced by names that stand for nothing.
"""

import importlib.machinery
import pathlib
import sys
import types

import numpy as np
import torch


class Absent(types.ModuleType):
    """A module in which every name is a class that does nothing."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__, self.__spec__ = [], importlib.machinery.ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


class Finder:
    """Finds mmcv.ops and what is in it."""

    def find_spec(self, name, path=None, target=None):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Absent(spec.name)

    def exec_module(self, module):
        """There is nothing in it."""


def load_head():
    import mmcv

    if not hasattr(mmcv, "ops"):
        mmcv.__version__ = "2.1.0"  # mmdet 3.3 refuses later ones
        sys.meta_path.insert(0, Finder())
    from mmdet.models.roi_heads.mask_heads.maskiou_head import MaskIoUHead

    return MaskIoUHead


def main(folder):
    head_class = load_head()
    from mmdet.structures.mask import BitmapMasks

    data = dict(np.load(folder / "inputs.npz"))
    torch.manual_seed(0)
    classes = int(data["num_classes"])
    head = head_class(num_classes=classes)
    with torch.no_grad():
        for parameter in head.parameters():  # biases too, and outputs that are not all near 0
            parameter.copy_(torch.randn_like(parameter) / (parameter[0].numel() or 1) ** 0.5)
    features, logits = torch.from_numpy(data["features"]).permute(0, 3, 1, 2), torch.from_numpy(data["logits"])
    with torch.no_grad():
        ious = head(features, logits)[torch.arange(len(logits)), torch.from_numpy(data["classes"])]
    objects = BitmapMasks(list(data["bitmaps"]), *data["bitmaps"].shape[1:])
    sample = types.SimpleNamespace(
        pos_priors=torch.from_numpy(data["rois"][:, [1, 0, 3, 2]]), pos_assigned_gt_inds=torch.arange(len(logits))
    )
    truth, settings = types.SimpleNamespace(masks=objects), types.SimpleNamespace(mask_thr_binary=0.5)
    # Probabilities: the whole model hands logits over, and 0.5 is then a probability of 0.62.
    arguments = {"mask_preds": logits.sigmoid(), "mask_targets": torch.from_numpy(data["targets"])}
    arguments |= {"sampling_results": [sample], "batch_gt_instances": [truth], "rcnn_train_cfg": settings}
    targets = head.get_targets(**arguments)
    loss = head.loss_and_target(ious, **arguments)["loss_mask_iou"]
    weights = {f"weight:{name}": value.detach().numpy() for name, value in head.state_dict().items()}
    np.savez(folder / "outputs.npz", ious=ious.numpy(), targets=targets.numpy(), loss=float(loss), **weights)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
