import numpy as np

from kmaskrcnn.ops import anchors


def test_cell_anchors_have_the_size_and_ratios():
    cell = anchors.cell_anchors(64, (0.5, 1.0, 2.0))
    height, width = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    np.testing.assert_allclose(height * width, 64**2, rtol=1e-5)
    np.testing.assert_allclose(height / width, (0.5, 1, 2), rtol=1e-5)
    np.testing.assert_allclose(cell[:, :2], -cell[:, 2:])


def test_rounded_anchors_are_the_published_ones_of_torchvision():
    # torchvision's AnchorGenerator for size 32: xyxy (-23,-11,23,11), (-16,-16,16,16), (-11,-23,11,23)
    expected = [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]]
    np.testing.assert_array_equal(anchors.cell_anchors(32, (0.5, 1.0, 2.0), rounded=True), expected)


def test_grid_runs_row_by_row_with_the_anchors_of_a_cell_together():
    cell = np.array([[-1, -1, 1, 1], [-2, -2, 2, 2]], np.float32)
    grid = np.asarray(anchors.grid_anchors(2, 3, 4, cell))
    assert grid.shape == (12, 4)
    np.testing.assert_array_equal(grid[0], cell[0])
    np.testing.assert_array_equal(grid[1], cell[1])
    np.testing.assert_array_equal(grid[2], cell[0] + [0, 4, 0, 4])
    np.testing.assert_array_equal(grid[6], cell[0] + [4, 0, 4, 0])
