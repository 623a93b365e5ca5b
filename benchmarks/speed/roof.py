"""What the processor could do: the convolutions and matrix products of the network, each timed alone.

The roof of a stage is the time that its convolutions and matrix products take when nothing is between them.
"""

import collections
import statistics
import time

# RoIs of the box head and of the mask head at inference, of an image.
BOX_ROIS, MASK_ROIS = 1000, 100
STRIDES = (4, 8, 16, 32, 64)


def convolutions(model, height, width, images):
    """Stage -> counts of (batch, height and width of the output, kernel side, stride, channels in and out).

    A matrix product is a convolution over one pixel; the deconvolution, whose 2 x 2 outputs a pixel do not overlap, one
    of side 1 to four times the channels.
    """
    import keras

    config = model.config
    found = collections.defaultdict(collections.Counter)
    backbone = keras.models.clone_model(model.backbone, input_tensors=keras.Input((height, width, 3)))
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.Conv2D):
            _, h, w, out = layer.output.shape
            _, _, _, channels = layer.input.shape
            found["backbone + FPN"][images, h, w, layer.kernel_size[0], layer.strides[0], channels, out] += 1
    sides = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    channels, rpn = config.fpn_channels, config.rpn_channels or config.fpn_channels
    anchors = len(config.anchor_aspect_ratios)
    for i, (h, w) in enumerate(sides):
        if i < 4:
            inputs = model.backbone.output[f"C{i + 2}"].shape[-1]
            found["backbone + FPN"][images, h, w, 1, 1, inputs, channels] += 1
            found["backbone + FPN"][images, h, w, 3, 1, channels, channels] += 1
        found["RPN"][images, h, w, 3, 1, channels, rpn] += 1
        found["RPN"][images, h, w, 1, 1, rpn, anchors] += 1
        found["RPN"][images, h, w, 1, 1, rpn, 4 * anchors] += 1
    units = config.box_pool_size**2 * channels
    for width_ in config.box_fc_channels:
        found["box head"][images * BOX_ROIS, 1, 1, 1, 1, units, width_] += 1
        units = width_
    for outputs in (config.num_classes + 1, 4 * (config.num_classes + 1)):
        found["box head"][images * BOX_ROIS, 1, 1, 1, 1, units, outputs] += 1
    cells = images * MASK_ROIS, config.mask_pool_size, config.mask_pool_size
    for out in config.mask_conv_channels:
        found["mask head"][*cells, 3, 1, channels, out] += 1
        channels = out
    found["mask head"][*cells, 1, 1, channels, 4 * channels] += 1
    return found


def flops(shape):
    """Multiplications and additions of a convolution."""
    batch, h, w, side, _, channels, out = shape
    return 2 * batch * h * w * side * side * channels * out


def bare_seconds(shape, dtype, repeats=5):
    """Seconds of one convolution with its bias and ReLU, as the graph of a network runs it."""
    import tensorflow as tf

    batch, h, w, side, stride, channels, out = shape
    kind = tf.as_dtype(dtype)
    x = tf.cast(tf.random.stateless_normal((batch, h * stride, w * stride, channels), (1, 2)), kind)
    kernel = tf.Variable(tf.cast(tf.random.stateless_normal((side, side, channels, out), (3, 4)), kind))
    bias = tf.Variable(tf.zeros(out, kind))

    @tf.function
    def run(x):
        y = tf.matmul(x[:, 0, 0], kernel[0, 0]) if h == w == 1 else tf.nn.conv2d(x, kernel, stride, "SAME")
        return tf.nn.relu(tf.nn.bias_add(y, bias))

    run(x)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run(x)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(model, height, width, images, dtype):
    """Stage -> {"flops", "seconds"} of its bare convolutions, and the best rates in FLOP/s."""
    known, stages = {}, {}
    rates = {"convolution": 0.0, "matrix product": 0.0}
    for stage, shapes in convolutions(model, height, width, images).items():
        for shape in shapes:
            known.setdefault(shape, bare_seconds(shape, dtype))
            kind = "matrix product" if shape[1] == 1 else "convolution"
            rates[kind] = max(rates[kind], flops(shape) / known[shape])
        stages[stage] = {
            "flops": sum(count * flops(shape) for shape, count in shapes.items()),
            "seconds": sum(count * known[shape] for shape, count in shapes.items()),
        }
    return {"stages": stages, "rates": rates}


def stage_table(name, result, roof):
    """Stages as Markdown: both sides, FLOPs, rate, and the share of the roof that we reach."""
    lines = [
        f"| {name} | ours | torchvision | ratio | GFLOP | ours, GFLOP/s | bare convolutions | share of the roof |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    total = {"ours": 0.0, "torchvision": 0.0, "flops": 0.0, "seconds": 0.0}

    def row(label, ours, theirs, work, bare):
        cells = [f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{theirs / ours:.2f}"]
        if work:
            cells += [f"{work / 1e9:.0f}", f"{work / ours / 1e9:.0f}", f"{1000 * bare:.0f} ms", f"{bare / ours:.0%}"]
        return f"| {label} | " + " | ".join(cells + [""] * (7 - len(cells))) + " |"

    for stage in result["ours"]:
        if stage == "total":
            continue
        ours, theirs = (statistics.median(result[side][stage]) for side in ("ours", "torchvision"))
        own = roof["stages"].get(stage, {"flops": 0.0, "seconds": 0.0})
        lines.append(row(stage, ours, theirs, own["flops"], own["seconds"]))
        for key, value in {"ours": ours, "torchvision": theirs, **own}.items():
            total[key] += value
    lines.append(row("sum", total["ours"], total["torchvision"], total["flops"], total["seconds"]))
    rates = ", ".join(f"{kind} {rate / 1e9:.0f} GFLOP/s" for kind, rate in roof["rates"].items())
    return "\n".join(lines) + f"\n\nBest measured rates: {rates}."
