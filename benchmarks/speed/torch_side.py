"""torchvision's side, run by `run.py`: python -m benchmarks.speed.torch_side WEIGHTS [--compile].

With --compile the network's parts go through torch.compile, their weights frozen in inference. Where WEIGHTS is not
there, makes a Mask R-CNN R50-FPN with random weights under which 1000 proposals and 100 detections an image survive, as
under trained ones, and writes its state dict.
"""

import contextlib
import pathlib
import sys

from benchmarks import parity  # noqa: F401  makes torchvision importable
from benchmarks.parity.torch_models import build, calibrate
from benchmarks.speed import workloads
from benchmarks.speed.workloads import Stages

import numpy as np  # isort: skip
import torch  # isort: skip
import torch._inductor.config  # isort: skip
import torchvision  # isort: skip
from torchvision.models.detection.roi_heads import maskrcnn_inference, paste_masks_in_image  # isort: skip
from torchvision.models.detection.rpn import concat_box_prediction_layers  # isort: skip
from torchvision.ops import roi_align  # isort: skip

PROPOSALS = 1000  # torchvision's default
STATE = None
COMPILE = False


def load_weights(path):
    """Read the weights of all models of this process, and make them before if they are not there."""
    global STATE
    torch.manual_seed(0)
    path = pathlib.Path(path)
    if not path.exists():
        model = build("r50_fpn", PROPOSALS)
        calibrate(model, [(512, 672), (512, 672)])
        torch.save(model.state_dict(), path)
    STATE = torch.load(path)


def make_model(height, width, paste=True):
    """In inference mode, for images of this size, which its transform then leaves as they are."""
    model = build("r50_fpn", PROPOSALS)
    model.load_state_dict(STATE)
    model.transform.min_size, model.transform.max_size = (min(height, width),), max(height, width)
    if not paste:
        model.transform.postprocess = lambda found, *_: found
    if COMPILE:
        # What is between them has a shape of its own for every image, and breaks the graph of the whole.
        heads = model.roi_heads
        parts = (heads.box_head, heads.box_predictor, heads.mask_head, heads.mask_predictor)
        for part in (model.backbone, model.rpn.head, *parts):
            part.compile()
    return model.eval()


def precision(dtype):
    """The context that computes in it."""
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()


def images_of(height, width, batch):
    return [torch.from_numpy(i).permute(2, 0, 1).float() / 255 for i in workloads.pictures(height, width, batch)]


def inference(height, width, batch, dtype, paste):
    """The whole model as a user calls it, masks pasted at full size or left as the network gives them."""
    model, images = make_model(height, width, paste), images_of(height, width, batch)
    proposals = []
    hook = model.rpn.register_forward_hook(lambda _, __, output: proposals.append([len(p) for p in output[0]]))

    @torch.inference_mode()
    def once():
        with precision(dtype):
            return model(images)

    found = once()
    hook.remove()
    once()
    assert all(f["masks"].shape[2:] == ((height, width) if paste else (28, 28)) for f in found)
    first = {name: value.float().numpy() for name, value in found[0].items()}
    told = {
        "proposals": proposals[0],
        "detections": [len(f["boxes"]) for f in found],
        "found": detections_of(first["boxes"], first["scores"], first["labels"], None if paste else first["masks"]),
    }
    return (lambda: once() and None), told


def detections_of(boxes, scores, labels, masks=None):
    """What torchvision finds in an image, as `workloads.detections` has it."""
    return workloads.detections(boxes[:, [1, 0, 3, 2]], scores, labels, None if masks is None else masks[:, 0])


def stages(height, width, batch, dtype):
    """The same stage by stage."""
    model, images = make_model(height, width), images_of(height, width, batch)
    heads, rpn = model.roi_heads, model.rpn

    @torch.inference_mode()
    def once():
        stage = Stages()
        image_list, _ = stage("preprocess", model.transform, images)
        with precision(dtype):
            features = stage("backbone + FPN", model.backbone, image_list.tensors)
            maps = list(features.values())
            logits, deltas = stage("RPN", rpn.head, maps)

            def propose(logits=logits, deltas=deltas):
                anchors = rpn.anchor_generator(image_list, maps)
                counts = [x.shape[1] * x.shape[2] * x.shape[3] for x in logits]
                logits, deltas = concat_box_prediction_layers(logits, deltas)
                boxes = rpn.box_coder.decode(deltas, anchors).view(len(anchors), -1, 4)
                return rpn.filter_proposals(boxes, logits, image_list.image_sizes, counts)[0]

            proposals = stage("proposals", propose)
            pooled = stage("RoIAlign, boxes", heads.box_roi_pool, features, proposals, image_list.image_sizes)
            logits, deltas = stage("box head", lambda: heads.box_predictor(heads.box_head(pooled)))
            boxes, _, labels = stage(
                "NMS", heads.postprocess_detections, logits, deltas, proposals, image_list.image_sizes
            )
            pooled = stage("RoIAlign, masks", heads.mask_roi_pool, features, boxes, image_list.image_sizes)
            masks = stage(
                "mask head", lambda: maskrcnn_inference(heads.mask_predictor(heads.mask_head(pooled)), labels)
            )
            stage("paste", lambda: [paste_masks_in_image(m, b, (height, width)) for m, b in zip(masks, boxes)])  # noqa: B905
        return stage.seconds

    once()
    return once, {}


def training(size, batch, objects, dtype):
    """A step: losses, gradients, SGD with momentum and weight decay."""
    model = make_model(size, size).train()
    images = images_of(size, size, batch)
    targets = [
        {
            "boxes": torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy()),
            "labels": torch.from_numpy(classes),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
        }
        for boxes, classes, masks in workloads.ground_truth(size, batch, objects)
    ]
    # The rate is so low that the weights, and with them the number of positive RoIs, stay as they are.
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)
    positives = []
    hook = model.roi_heads.mask_head.register_forward_hook(lambda _, inputs, __: positives.append(len(inputs[0])))

    def once():
        with precision(dtype):
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    for _ in range(3 if COMPILE else 1):  # compiled again for any number of RoIs once it has seen two
        once()
    hook.remove()
    return once, {"mask_rois": positives[0], "trained": sum(p.numel() for p in trained)}


def align(rois, size, maps, boxes, backward):
    """RoIAlign alone, level by level, channels first; inputs as for `our_side.align`."""
    with np.load(maps) as file:
        maps = [torch.tensor(file[name].transpose(0, 3, 1, 2).copy(), requires_grad=backward) for name in file]
    boxes = np.load(boxes)[:rois]
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    levels = np.clip(np.floor(4 + np.log2(side / 224 + 1e-6)), 2, 5)
    own = [torch.tensor(np.pad(boxes[levels == level][:, [1, 0, 3, 2]], ((0, 0), (1, 0)))) for level in (2, 3, 4, 5)]

    def once():
        with torch.set_grad_enabled(backward):
            pooled = [roi_align(m, b, size, 0.5 ** (i + 2), 2) for i, (m, b) in enumerate(zip(maps, own))]  # noqa: B905
            if backward:
                torch.autograd.grad(pooled, maps, [torch.ones_like(p) for p in pooled])

    once()
    return once, {}


def paste(height, width, count):
    """The masks of one image."""
    masks, boxes = workloads.instances(count, height, width)
    masks, boxes = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes[:, [1, 0, 3, 2]].copy())

    def once():
        assert (paste_masks_in_image(masks, boxes, (height, width)) > 0.5).shape == (count, 1, height, width)

    once()
    return once, {}


def main():
    global COMPILE
    COMPILE = "--compile" in sys.argv
    torch._inductor.config.freezing = COMPILE
    load_weights(sys.argv[1])
    kinds = {f.__name__: f for f in (inference, stages, training, align, paste)}
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "threads": torch.get_num_threads()}
    workloads.serve(lambda kind, **arguments: kinds[kind](**arguments), versions)


if __name__ == "__main__":
    main()
