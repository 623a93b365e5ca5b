"""Independent float64 versions of the operations, written from their description, point by point."""

import math

import numpy as np


def roi_align(feature, box, scale, size, ratio, aligned):
    """One map (H, W, C) and one RoI: bins of ratio x ratio bilinear samples; 0 beyond one pixel outside the map.

    Ratio 0 takes as many samples as a bin is pixels high and wide, rounded up.
    """
    feature = np.asarray(feature, np.float64)
    height, width, channels = feature.shape
    y0, x0, y1, x1 = np.asarray(box, np.float64) * scale - (0.5 if aligned else 0.0)
    roi_height, roi_width = y1 - y0, x1 - x0
    if not aligned:
        roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
    rows, columns = ratio or math.ceil(roi_height / size), ratio or math.ceil(roi_width / size)
    out = np.zeros((size, size, channels))
    for i in range(size):
        for j in range(size):
            for a in range(rows):
                for b in range(columns):
                    y = y0 + (i + (a + 0.5) / rows) * roi_height / size
                    x = x0 + (j + (b + 0.5) / columns) * roi_width / size
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    v, u = y - top, x - left
                    out[i, j] += (1 - v) * ((1 - u) * feature[top, left] + u * feature[top, right])
                    out[i, j] += v * ((1 - u) * feature[bottom, left] + u * feature[bottom, right])
    return out / max(rows * columns, 1)


def roi_level(box):
    """FPN, equation 1, clamped to P2..P5."""
    area = max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
    return 2 if area == 0 else min(max(math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-6)), 2), 5)


def iou(p, q):
    """Of two boxes; 0 for boxes of no area."""
    height, width = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (p, q)]
    return height * width / (areas[0] + areas[1] - height * width)


def nms(boxes, scores, max_output, iou_threshold, score_threshold):
    """Greedy, equal scores by index; boxes of no area or with a NaN never come out."""
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores)
    score_threshold = scores.dtype.type(score_threshold)  # NumPy before 2 compares a float32 with 0.1 in float64
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        box = boxes[i]
        good = np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1] and scores[i] > score_threshold
        if good and all(iou(box, boxes[j]) <= iou_threshold for j in kept):
            kept.append(int(i))
    return kept[:max_output]
