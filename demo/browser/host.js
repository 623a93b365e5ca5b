// The host's part of a model for the GPU: proposals, RoIAlign, detections, the mask of each one's class, pasting.
// The same steps as kmaskrcnn/export/host.py, on typed arrays; tests/golden/host_vectors.json holds what each must give.
// Boxes are y0 x0 y1 x1, four numbers each, in pixels of the network's input. `settings` is `host` of the metadata.

const MAX_LOG_SCALE = Math.log(1000 / 16);
const f32 = Math.fround;

// Indices of the k highest of scores, or of all where there are fewer; of equal ones the first comes first.
export function topK(scores, k) {
  const order = Uint32Array.from(scores, (_, i) => i);
  return order.sort((a, b) => scores[b] - scores[a] || a - b).subarray(0, k);
}

// Write the box that deltas[d .. d+3], divided by weights, make of the box at anchors[a .. a+3], clipped to the image.
function decode(deltas, d, weights, anchors, a, imageShape, out, o) {
  for (let axis = 0; axis < 2; axis++) {
    const size = f32(anchors[a + axis + 2] - anchors[a + axis]);
    const center = deltas[d + axis] / weights[axis] * size + (anchors[a + axis] + 0.5 * size);
    const half = 0.5 * Math.exp(Math.min(deltas[d + axis + 2] / weights[axis + 2], MAX_LOG_SCALE)) * size;
    out[o + axis] = Math.min(Math.max(center - half, 0), imageShape[axis]);
    out[o + axis + 2] = Math.min(Math.max(center + half, 0), imageShape[axis]);
  }
}

// Greedy non-maximum suppression over the rows `order`, best first: the rows that are kept, at most `most`.
export function nms(boxes, order, iouThreshold, most) {
  const area = (b) => (boxes[b + 2] - boxes[b]) * (boxes[b + 3] - boxes[b + 1]);
  const keep = [];
  for (const row of order) {
    if (keep.length >= most) break;
    const b = 4 * row;
    if (!(boxes[b + 2] > boxes[b] && boxes[b + 3] > boxes[b + 1])) continue;
    const covered = keep.some((other) => {
      const o = 4 * other;
      const height = Math.min(boxes[b + 2], boxes[o + 2]) - Math.max(boxes[b], boxes[o]);
      const width = Math.min(boxes[b + 3], boxes[o + 3]) - Math.max(boxes[b + 1], boxes[o + 1]);
      const overlap = Math.max(height, 0) * Math.max(width, 0);
      return overlap > iouThreshold * (area(b) + area(o) - overlap);
    });
    if (!covered) keep.push(row);
  }
  return keep;
}

// Boxes by falling objectness, at most rpn_post_nms_top_k, from the outputs of the graph pyramid.
export function proposals(outputs, imageShape, settings) {
  const most = settings.rpn_post_nms_top_k;
  const boxes = [];
  const scores = [];
  for (const level of settings.levels) {
    const logits = outputs[`objectness_${level.name}`];
    const deltas = outputs[`deltas_${level.name}`];
    const rows = topK(logits, settings.rpn_pre_nms_top_k);
    const perCell = level.anchors.length;
    const decoded = new Float32Array(4 * rows.length);
    const anchor = new Float32Array(4);
    const large = [];
    rows.forEach((row, i) => {
      const cell = Math.floor(row / perCell);
      const [y, x] = [Math.floor(cell / level.width), cell % level.width];
      level.anchors[row % perCell].forEach((v, j) => {
        anchor[j] = (j % 2 ? x * level.strides[1] : y * level.strides[0]) + v;
      });
      decode(deltas, 4 * row, [1, 1, 1, 1], anchor, 0, imageShape, decoded, 4 * i);
      const height = decoded[4 * i + 2] - decoded[4 * i];
      const width = decoded[4 * i + 3] - decoded[4 * i + 1];
      if (height > settings.rpn_min_size && width > settings.rpn_min_size) large.push(i);
    });
    for (const i of nms(decoded, large, f32(settings.rpn_nms_iou), most)) {
      boxes.push(decoded.subarray(4 * i, 4 * i + 4));
      scores.push(logits[rows[i]]);
    }
  }
  const order = topK(scores, most);
  const result = new Float32Array(4 * order.length);
  order.forEach((row, i) => result.set(boxes[row], 4 * i));
  return result;
}

// The level 2..5 that a box is pooled from (FPN, equation 1).
export function roiLevel(boxes, b) {
  const side = Math.sqrt(Math.max(boxes[b + 2] - boxes[b], 0) * Math.max(boxes[b + 3] - boxes[b + 1], 0));
  return Math.min(Math.max(Math.floor(4 + Math.log2(side / 224 + 1e-6)), 2), 5);
}

// RoIAlign along one axis: the cells that each bin reads and their weights, 2 * ratio of both for each bin.
function axisTaps(start, stop, length, size, ratio, aligned) {
  const extent = aligned ? f32(stop - start) : Math.max(f32(stop - start), 1);
  const first = aligned ? f32(start - 0.5) : f32(start);
  const cells = new Int32Array(2 * ratio * size);
  const weights = new Float32Array(2 * ratio * size);
  for (let sample = 0; sample < size * ratio; sample++) {
    const position = f32(first + f32(f32((sample + 0.5) / ratio) * f32(extent / size)));
    if (position < -1 || position > length) continue;
    const inside = Math.min(Math.max(position, 0), length - 1);
    const low = Math.floor(inside);
    cells[2 * sample] = low;
    cells[2 * sample + 1] = Math.min(low + 1, length - 1);
    weights[2 * sample] = (1 - (inside - low)) / ratio;
    weights[2 * sample + 1] = (inside - low) / ratio;
  }
  return { cells, weights };
}

// Pool boxes, each from its level, into `count` rows of size x size x channels; further rows are 0.
export function roiAlign(outputs, boxes, count, size, settings) {
  const { channels, roi_sampling_ratio: ratio, roi_aligned: aligned } = settings;
  const pooled = new Float32Array(count * size * size * channels);
  const taps = 2 * ratio;
  for (let roi = 0; 4 * roi < boxes.length; roi++) {
    const b = 4 * roi;
    const level = roiLevel(boxes, b);
    const { height, width } = settings.levels[level - 2];
    const map = outputs[`P${level}`];
    const scale = 0.5 ** level;
    const rows = axisTaps(boxes[b] * scale, boxes[b + 2] * scale, height, size, ratio, aligned);
    const columns = axisTaps(boxes[b + 1] * scale, boxes[b + 3] * scale, width, size, ratio, aligned);
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const to = ((roi * size + y) * size + x) * channels;
        for (let i = y * taps; i < (y + 1) * taps; i++) {
          for (let j = x * taps; j < (x + 1) * taps; j++) {
            const weight = rows.weights[i] * columns.weights[j];
            if (weight === 0) continue;
            const from = (rows.cells[i] * width + columns.cells[j]) * channels;
            for (let c = 0; c < channels; c++) pooled[to + c] += weight * map[from + c];
          }
        }
      }
    }
  }
  return pooled;
}

// The objects by falling score, at most max_detections: boxes, scores, and classes from 1.
export function detections(scores, deltas, boxes, imageShape, settings) {
  const count = boxes.length / 4;
  const classes = settings.num_classes;
  const found = [];
  for (let number = 1; number <= classes; number++) {
    const rows = [];
    const decoded = new Float32Array(4 * count);
    for (let roi = 0; roi < count; roi++) {
      if (!(scores[roi * (classes + 1) + number] > f32(settings.score_threshold))) continue;
      const from = 4 * (roi * (classes + 1) + number);
      decode(deltas, from, settings.box_coding_weights, boxes, 4 * roi, imageShape, decoded, 4 * roi);
      rows.push(roi);
    }
    const score = (roi) => scores[roi * (classes + 1) + number];
    rows.sort((a, b) => score(b) - score(a) || a - b);
    for (const roi of nms(decoded, rows, f32(settings.nms_iou), settings.max_detections)) {
      found.push({ roi, number, score: score(roi), box: decoded.slice(4 * roi, 4 * roi + 4) });
    }
  }
  found.sort((a, b) => b.score - a.score || a.roi - b.roi || a.number - b.number);
  const kept = found.slice(0, settings.max_detections);
  const result = new Float32Array(4 * kept.length);
  kept.forEach((object, i) => result.set(object.box, 4 * i));
  return {
    boxes: result,
    scores: Float32Array.from(kept, (object) => object.score),
    classes: Int32Array.from(kept, (object) => object.number),
  };
}

// The mask of each object's class among those of all classes: side * side numbers each.
export function chooseMasks(masks, classes, settings) {
  const cells = 4 * settings.mask_pool_size ** 2;
  const depth = settings.num_classes + 1;
  const result = new Float32Array(classes.length * cells);
  classes.forEach((number, i) => {
    for (let cell = 0; cell < cells; cell++) result[i * cells + cell] = masks[(i * cells + cell) * depth + number];
  });
  return result;
}

// The whole model. `run(graph, input)` resolves to the outputs by name of one of the graphs pyramid, boxes and masks.
export async function detect(run, images, imageShape, settings) {
  const maps = await run("pyramid", images);
  const rois = proposals(maps, imageShape, settings);
  const pooled = roiAlign(maps, rois, settings.rpn_post_nms_top_k, settings.box_pool_size, settings);
  const heads = await run("boxes", pooled);
  const found = detections(heads.scores, heads.deltas, rois, imageShape, settings);
  if (!found.classes.length) return { ...found, masks: new Float32Array(0) };
  const masksInput = roiAlign(maps, found.boxes, settings.max_detections, settings.mask_pool_size, settings);
  const { masks } = await run("masks", masksInput);
  return { ...found, masks: chooseMasks(masks, found.classes, settings) };
}

// Whether pixel (y, x) belongs to an object: its mask at the pixel's center, bilinear, nothing outside the box.
export function covers(object, y, x) {
  const { box, mask, side } = object;
  const v = ((y + 0.5 - box[0]) / (box[2] - box[0])) * side - 0.5;
  const u = ((x + 0.5 - box[1]) / (box[3] - box[1])) * side - 0.5;
  const [row, column] = [Math.floor(v), Math.floor(u)];
  const at = (i, j) => (i < 0 || j < 0 || i >= side || j >= side ? 0 : mask[i * side + j]);
  const top = at(row, column) * (1 - u + column) + at(row, column + 1) * (u - column);
  const bottom = at(row + 1, column) * (1 - u + column) + at(row + 1, column + 1) * (u - column);
  return top * (1 - v + row) + bottom * (v - row) >= 0.5;
}

// The mask of an object in an image of height and width: one byte a pixel, 1 where it is set.
export function paste(object, height, width) {
  const image = new Uint8Array(height * width);
  const [y0, x0, y1, x1] = object.box;
  for (let y = Math.max(Math.floor(y0), 0); y < Math.min(Math.ceil(y1), height); y++) {
    for (let x = Math.max(Math.floor(x0), 0); x < Math.min(Math.ceil(x1), width); x++) {
      image[y * width + x] = covers(object, y, x) ? 1 : 0;
    }
  }
  return image;
}
