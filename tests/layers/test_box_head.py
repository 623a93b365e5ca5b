import numpy as np
import pytest

from kmaskrcnn.config import Config
from kmaskrcnn.layers.box_head import detect_boxes


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
