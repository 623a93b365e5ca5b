import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kmaskrcnn.layers.roi_align import RoIAlign, roi_levels
from kmaskrcnn.ops.roi_align import roi_align_crop_and_resize, roi_align_gather, roi_align_lookup
from kmaskrcnn.ops.roi_align_inputs import RoIAlignInputs
from tests import numpy_reference

# yxyx in image pixels of a 13 x 17 map at stride 4, that is 52 x 68 pixels.
ROIS = np.array(
    [
        [8, 8, 40, 48],  # inside
        [-30, -20, 30, 20],  # over the top left corner
        [40, 50, 90, 110],  # over the bottom right corner
        [0, 0, 52, 68],  # the whole map
        [100, 120, 140, 180],  # outside
        [-80, -80, -20, -20],  # outside
        [-4, -4, 0, 0],  # within one feature pixel of the border
        [52, 68, 55, 71],
        [10, 10, 10, 10],  # no area
        [0, 0, 0, 0],  # a padded row
        [30, 30, 20, 10],  # inverted
        [3.3, 5.7, 9.1, 8.2],  # small and fractional
    ],
    np.float32,
)

KERNELS = {"gather": roi_align_gather, "crop_and_resize": roi_align_crop_and_resize, "lookup": roi_align_lookup}


def run(implementation, features, boxes, images, scale, size, ratio, aligned):
    first_map = tf.zeros(len(boxes), tf.int32)
    inputs = RoIAlignInputs([features], [scale], boxes, images, first_map, size, ratio, aligned)
    return KERNELS[implementation](inputs)


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(2, 13, 17, 3)).astype(np.float32)


@pytest.mark.parametrize("implementation", sorted(KERNELS))
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize(("size", "ratio"), [(7, 2), (4, 1), (3, 3), (7, 0), (2, 0)])
def test_equals_numpy_over_the_border_outside_and_degenerate(implementation, aligned, size, ratio, features):
    if implementation == "lookup" and not ratio:
        pytest.skip("its shapes must be known")
    images = np.arange(len(ROIS), dtype=np.int32) % 2
    actual = run(implementation, features, ROIS, images, 0.25, size, ratio, aligned)
    for i, box in enumerate(ROIS):
        expected = numpy_reference.roi_align(features[images[i]], box, 0.25, size, ratio, aligned)
        if aligned and (box[2] <= box[0] or box[3] <= box[1]):
            assert np.isfinite(actual[i]).all()  # without the minimum size such a RoI has no defined value
        else:
            np.testing.assert_allclose(actual[i], expected, atol=2e-5, err_msg=str(box))


coordinate = st.floats(-80, 130, width=32)


@pytest.mark.parametrize("implementation", sorted(KERNELS))
@settings(max_examples=30, deadline=None)
@given(boxes=st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=4), size=st.integers(1, 5))
def test_equals_numpy_on_any_box(implementation, boxes, size):
    """A linear map, so that a sample a rounding error beside the border is the only place where results may jump."""
    height, width = 13, 17
    feature = np.add.outer(np.arange(height) * 0.3, np.arange(width) * 0.2).astype(np.float32)[None, :, :, None]
    boxes = np.asarray(boxes, np.float32)
    actual = run(implementation, feature, boxes, np.zeros(len(boxes), np.int32), 0.25, size, 2, False)
    for i, box in enumerate(boxes):
        shifted = [numpy_reference.roi_align(feature[0], box + e, 0.25, size, 2, False) for e in (-1e-3, 0, 1e-3)]
        tolerance = 2e-3
        assert (actual[i] >= np.min(shifted, axis=0) - tolerance).numpy().all(), box
        assert (actual[i] <= np.max(shifted, axis=0) + tolerance).numpy().all(), box


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
@pytest.mark.parametrize(("size", "ratio"), [(7, 2), (3, 3), (1, 1), (2, 0)])
def test_gradient_is_the_adjoint_of_the_float64_reference(implementation, size, ratio, features):
    """<gradient, direction> = <upstream, RoIAlign(direction)> over all kinds of RoIs, for the operation is linear."""
    rng = np.random.default_rng(5)
    images = np.arange(len(ROIS), dtype=np.int32) % 2
    upstream = rng.normal(size=(len(ROIS), size, size, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.constant(features)
        tape.watch(x)
        pooled = run(implementation, x, ROIS, images, 0.25, size, ratio, False)
    gradient = tf.convert_to_tensor(tape.gradient(pooled, x, upstream)).numpy().astype(np.float64)
    for _ in range(3):
        direction = rng.normal(size=features.shape)
        expected = sum(
            (numpy_reference.roi_align(direction[i], box, 0.25, size, ratio, False) * g).sum()
            for i, box, g in zip(images, ROIS, upstream, strict=True)
        )
        np.testing.assert_allclose((gradient * direction).sum(), expected, atol=1e-3)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_gradient_equals_finite_differences(implementation, features):
    """The operation is linear in the map, so a difference quotient of the float64 reference is exact."""
    boxes, images = ROIS[:4], np.zeros(4, np.int32)
    upstream = np.random.default_rng(1).normal(size=(4, 3, 3, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        x = tf.constant(features)
        tape.watch(x)
        loss = tf.reduce_sum(run(implementation, x, boxes, images, 0.25, 3, 2, False) * upstream)
    gradient = tf.convert_to_tensor(tape.gradient(loss, x)).numpy()

    def reference(feature):
        return sum(
            (numpy_reference.roi_align(feature, b, 0.25, 3, 2, False) * g).sum()
            for b, g in zip(boxes, upstream, strict=True)
        )

    assert not gradient[1].any()  # no RoI lies in the second image
    for y, x_, c in [(0, 0, 0), (3, 4, 1), (6, 8, 2), (12, 16, 0), (12, 0, 1), (5, 5, 1)]:
        bumped = features[0].copy()
        bumped[y, x_, c] += 1
        np.testing.assert_allclose(gradient[0, y, x_, c], reference(bumped) - reference(features[0]), atol=1e-4)


def test_both_forms_have_the_same_gradient():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, 20, 30, 8)).astype(np.float32)
    start = rng.uniform(-20, 100, (50, 2))
    boxes = np.concatenate([start, start + rng.uniform(0, 80, (50, 2))], 1).astype(np.float32)
    images = rng.integers(0, 2, 50).astype(np.int32)
    gradients = []
    for implementation in ("gather", "crop_and_resize"):
        with tf.GradientTape() as tape:
            x = tf.constant(features)
            tape.watch(x)
            loss = tf.reduce_sum(run(implementation, x, boxes, images, 0.25, 7, 2, False) ** 2)
        gradients.append(tf.convert_to_tensor(tape.gradient(loss, x)).numpy())
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-3 * abs(gradients[0]).max())


def pyramid(channels, side=256, batch=1, seed=3):
    rng = np.random.default_rng(seed)
    return {
        f"P{level}": tf.constant(rng.normal(size=(batch, side >> level, side >> level, channels)).astype(np.float32))
        for level in (2, 3, 4, 5)
    }


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_forward_and_gradient_are_bit_equal_over_repeated_runs_on_several_threads(implementation):
    """Many RoIs over the same pixels: the operator's own gradient loses values here when two threads meet."""
    rng = np.random.default_rng(3)
    features = pyramid(64, side=128, batch=2)
    start = rng.uniform(0, 40, (200, 2))
    sides = np.geomspace(20, 800, 200)[:, None]  # of every level
    boxes = tf.constant(np.concatenate([start, start + sides], 1).astype(np.float32))
    images = tf.constant(np.arange(200) % 2, tf.int32)
    layer = RoIAlign(14, implementation=implementation)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = layer.pool(features, boxes, images)
            loss = tf.reduce_sum(pooled**2)
        return [pooled, *tape.gradient(loss, features).values()]

    first = [x.numpy() for x in step()]
    assert all(x.any() for x in first)
    for _ in range(25):
        for actual, expected in zip(step(), first, strict=True):
            np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_any_number_of_rois_trains_through_one_graph(implementation):
    """Also none at all, and maps down to a single pixel."""
    features = pyramid(3, side=32)
    layer = RoIAlign(3, implementation=implementation)

    @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int32)])
    def step(boxes, images):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = layer.pool(features, boxes, images)
        return pooled, [tf.convert_to_tensor(g) for g in tape.gradient(pooled, features).values()]

    for count in (0, 1, 5):
        boxes = np.tile(np.array([[2, 2, 20, 20]], np.float32), (count, 1))
        pooled, gradients = step(boxes, np.zeros(count, np.int32))
        assert pooled.shape == (count, 3, 3, 3)
        # The weights of a bin inside the map add up to 1.
        np.testing.assert_allclose(sum(tf.reduce_sum(g) for g in gradients), count * 27, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_boxes_that_are_not_finite_neither_crash_nor_spread(implementation):
    boxes = np.array(
        [[[np.nan] * 4, [-np.inf, -np.inf, np.inf, np.inf], [-3e38, 0, 3e38, 5], [0, 0, 8, 8]]], np.float32
    )
    features = pyramid(2)
    pooled = RoIAlign(3, implementation=implementation)(features, boxes)
    assert np.isfinite(pooled).all()
    expected = numpy_reference.roi_align(features["P2"][0], boxes[0, 3], 0.25, 3, 2, False)
    np.testing.assert_allclose(pooled[0, 3], expected, atol=1e-4)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_layer_pools_each_roi_from_its_level_and_image(implementation):
    rng = np.random.default_rng(4)
    features = {
        f"P{level}": rng.normal(size=(2, 256 >> (level - 2), 192 >> (level - 2), 2)).astype(np.float32)
        for level in (2, 3, 4, 5)
    }
    start = rng.uniform(0, 400, (2, 9, 2))
    sides = np.geomspace(10, 700, 9)[None, :, None] * rng.uniform(0.8, 1.2, (2, 9, 2))
    boxes = np.concatenate([start, start + sides], -1).astype(np.float32)
    boxes[1, -1] = 0  # a padded row
    pooled = RoIAlign(3, implementation=implementation)(features, boxes)
    assert pooled.shape == (2, 9, 3, 3, 2)
    levels = np.asarray(roi_levels(boxes))
    assert set(levels.ravel()) == {2, 3, 4, 5}
    for b in range(2):
        for r in range(9):
            level = numpy_reference.roi_level(boxes[b, r])
            assert levels[b, r] == level
            expected = numpy_reference.roi_align(features[f"P{level}"][b], boxes[b, r], 0.5**level, 3, 2, False)
            np.testing.assert_allclose(pooled[b, r], expected, atol=1e-4)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_no_rois_at_all(implementation):
    features = {f"P{level}": tf.ones((1, 8, 8, 4)) for level in (2, 3, 4, 5)}
    layer = RoIAlign(7, implementation=implementation)
    assert layer.pool(features, tf.zeros((0, 4)), tf.zeros((0,), tf.int32)).shape == (0, 7, 7, 4)


def test_level_boundaries_are_the_published_ones():
    sides = np.array([1, 111, 112, 223, 224, 447, 448, 2000], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], -1)
    np.testing.assert_array_equal(roi_levels(boxes), [2, 2, 3, 3, 4, 4, 5, 5])


def test_gather_form_compiles_under_xla_and_in_bfloat16(features):
    images = np.zeros(len(ROIS), np.int32)
    expected = run("gather", features, ROIS, images, 0.25, 7, 2, False)
    compiled = tf.function(lambda f: run("gather", f, ROIS, images, 0.25, 7, 2, False), jit_compile=True)
    np.testing.assert_allclose(compiled(features), expected, atol=1e-5)
    half = run("gather", tf.cast(features, tf.bfloat16), ROIS, images, 0.25, 7, 2, False)
    assert half.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(half, tf.float32), expected, atol=0.05)


def test_crop_and_resize_keeps_the_dtype_and_the_layer_keeps_boxes_in_float32(features):
    half_features = tf.cast(features, tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(half_features)
        half = run("crop_and_resize", half_features, ROIS, np.zeros(len(ROIS), np.int32), 0.25, 7, 2, False)
    assert half.dtype == tf.bfloat16
    assert tape.gradient(half, half_features).dtype == tf.bfloat16
    maps = {f"P{level}": tf.cast(features, tf.bfloat16) for level in (2, 3, 4, 5)}
    box = tf.constant([[[100.3, 3.1, 131.7, 40.2]]])
    layer = RoIAlign(3, dtype=keras.DTypePolicy("mixed_bfloat16"))
    expected = run("crop_and_resize", maps["P2"], box[0], [0], 0.25, 3, 2, False)
    np.testing.assert_array_equal(tf.cast(layer(maps, box)[0], tf.float32), tf.cast(expected, tf.float32))


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_one_sample_a_pixel_in_a_graph_on_all_levels(implementation):
    """Sampling ratio 0 with RoIs of every level, a long one among them, in a graph that knows no shape."""
    rng = np.random.default_rng(2)
    features = {f"P{i}": rng.normal(size=(2, 512 >> i, 640 >> i, 2)).astype(np.float32) for i in range(2, 6)}
    boxes = np.array([[4, 8, 60, 70], [0, 0, 500, 600], [10, 4, 30, 630], [100, 90, 300, 333]], np.float32)
    layer = RoIAlign(3, sampling_ratio=0, aligned=True, implementation=implementation)
    owner = np.array([0, 1, 1, 0], np.int32)
    spec = {name: tf.TensorSpec((None, None, None, 2), tf.float32) for name in features}
    signature = [spec, tf.TensorSpec((None, 4), tf.float32), tf.TensorSpec((None,), tf.int32)]
    actual = tf.function(layer.pool, input_signature=signature)(features, boxes, owner).numpy()
    for i, box in enumerate(boxes):
        level = numpy_reference.roi_level(box)
        expected = numpy_reference.roi_align(features[f"P{level}"][owner[i]], box, 0.5**level, 3, 0, True)
        np.testing.assert_allclose(actual[i], expected, atol=2e-5)
    assert tf.function(layer.pool, input_signature=signature)(features, boxes[:0], owner[:0]).shape == (0, 3, 3, 2)


@pytest.mark.parametrize("implementation", ["gather", "crop_and_resize"])
def test_one_sample_a_pixel_has_a_gradient_without_a_graph_where_levels_have_no_roi(implementation):
    features = {f"P{i}": tf.ones((1, 128 >> i, 128 >> i, 2)) for i in range(2, 6)}
    layer = RoIAlign(3, sampling_ratio=0, aligned=True, implementation=implementation)
    with tf.GradientTape() as tape:
        tape.watch(features)
        pooled = layer.pool(features, tf.constant([[4.0, 8, 60, 70]]), tf.zeros((1,), tf.int32))
    gradients = tape.gradient(pooled, features)
    sums = [float(tf.reduce_sum(tf.convert_to_tensor(g))) if g is not None else 0.0 for g in gradients.values()]
    np.testing.assert_allclose(sums, [3 * 3 * 2, 0, 0, 0], rtol=1e-5)


def test_with_known_shapes_the_ratio_is_that_of_a_roi_of_middle_size():
    assert RoIAlign(7, sampling_ratio=0, implementation="lookup")._ratio == 3
    assert RoIAlign(14, sampling_ratio=0, implementation="lookup")._ratio == 2
