import numpy as np
import pytest

from kmaskrcnn.config import Config
from kmaskrcnn.layers.box_head import RoISample, box_head_losses, detect_boxes
from kmaskrcnn.layers.rpn import AnchorSample, rpn_losses
from kmaskrcnn.ops import boxes as box_ops
from tests.ops.test_losses import giou_reference


@pytest.mark.parametrize(("smallest", "expected"), [(0.0, [1, 1, 1]), (0.01, [1, 1, 0])])
def test_boxes_thinner_than_box_min_size_are_dropped(smallest, expected):
    """As torchvision does after clipping: the third lies at the border, and little of it is in the image."""
    proposals = np.array([[[5, 5, 30, 30], [40, 40, 40.02, 60], [-8, 20, 0.005, 60]]], np.float32)
    logits = np.tile(np.array([0.0, 4.0], np.float32), (1, 3, 1))
    config = Config().replace(num_classes=1, box_min_size=smallest).model
    deltas, scores, shapes = np.zeros((1, 3, 2, 4), np.float32), np.zeros((1, 3), np.float32), np.array([[64, 64]])
    boxes, _, _, count = (np.asarray(x) for x in detect_boxes(logits, deltas, proposals, scores, shapes, config))
    assert count[0] == sum(expected)
    heights = sorted((boxes[0, : count[0], 2] - boxes[0, : count[0], 0]).tolist())
    np.testing.assert_allclose(
        heights, [h for h, e in zip([0.005, 0.02, 25], [expected[2], 1, 1], strict=True) if e], rtol=1e-3
    )


@pytest.mark.parametrize("agnostic", [False, True])
def test_giou_is_summed_over_the_positives_of_their_own_class(agnostic):
    """RPN and box head against the definition in float64."""
    rng = np.random.default_rng(1)
    start, size = rng.uniform(0, 40, (2, 2, 6, 2)), rng.uniform(8, 40, (2, 2, 6, 2))
    rois, truth = np.concatenate([start, start + size], axis=-1).astype(np.float32)
    classes = np.array([[1, 2, 3, 0, 0, 0], [3, 3, 0, 0, 0, 0]], np.int32)
    matched = np.array([[4, 0, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0]], np.int32)
    valid = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]], bool)
    sample = RoISample(rois, classes, matched, classes > 0, valid)
    deltas = rng.normal(0, 1.0, (2, 6, 1 if agnostic else 4, 4)).astype(np.float32)
    settings = {"box_loss": "giou", "box_loss_weight": 10.0, "rpn_box_loss": "giou", "rpn_box_loss_weight": 2.0}
    config = Config().replace(num_classes=3, **settings).model
    found = box_head_losses(np.zeros((2, 6, 4), np.float32), deltas, sample, truth, 7.0, config)

    def total(deltas, boxes, weights):
        """Over the positives; deltas (2, 6, 4)."""
        made = np.asarray(box_ops.decode(deltas, boxes, weights), np.float64)
        return sum(giou_reference(made[i], truth[i[0], matched[i]]) for i in zip(*np.nonzero(classes), strict=True))

    own = np.take_along_axis(
        deltas, np.zeros_like(classes)[..., None, None] if agnostic else classes[..., None, None], 2
    )
    expected = total(own[:, :, 0], rois, box_ops.BOX_HEAD_CODING_WEIGHTS)
    np.testing.assert_allclose(found["box"], 10.0 * expected / 7.0, rtol=1e-5)

    anchors, indices = rois[0], np.array([[5, 1, 2, 0, 3, 4], [0, 2, 1, 5, 4, 3]], np.int32)
    outputs = {"P2": (np.zeros((2, 6), np.float32), deltas[:, :, 0])}
    sample = AnchorSample(indices, matched, classes > 0, valid)
    found = rpn_losses(outputs, {"P2": anchors}, sample, truth, 7.0, config)
    chosen = np.take_along_axis(deltas[:, :, 0], indices[..., None], 1)
    expected = total(chosen, anchors[indices], box_ops.RPN_CODING_WEIGHTS)
    np.testing.assert_allclose(found["rpn_box"], 2.0 * expected / 7.0, rtol=1e-5)
