// node host.test.mjs ../../tests/golden/host_vectors.json: the host's steps against what the model gives.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import * as host from "./host.js";

function unpack(value) {
  if (Array.isArray(value) || typeof value !== "object") return value;
  if ("data" in value && "shape" in value) {
    const bytes = Buffer.from(value.data, "base64");
    return new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
  }
  return Object.fromEntries(Object.entries(value).map(([name, v]) => [name, unpack(v)]));
}

function near(found, expected, tolerance, what) {
  assert.equal(found.length, expected.length, what);
  const worst = found.reduce((most, v, i) => Math.max(most, Math.abs(v - expected[i])), 0);
  assert.ok(worst <= tolerance, `${what}: ${worst}`);
  console.log(`${what}: ${found.length} numbers, worst difference ${worst.toExponential(1)}`);
}

const vectors = unpack(JSON.parse(readFileSync(process.argv[2], "utf8")));
const { settings, pyramid, heads } = vectors;
const shape = vectors.image_shape;
const rois = host.proposals(pyramid, shape, settings);
near(rois, vectors.proposals, 1e-4, "proposals");
near(host.roiAlign(pyramid, rois, rois.length / 4, settings.box_pool_size, settings), vectors.pooled, 1e-4, "pooled");
const graphs = { pyramid, boxes: heads, masks: { masks: vectors.masks } };
const found = await host.detect(async (name) => graphs[name], null, shape, settings);
for (const name of ["boxes", "scores", "classes", "masks"]) near(found[name], vectors.detections[name], 1e-4, name);
const pooledMasks = host.roiAlign(pyramid, found.boxes, settings.max_detections, settings.mask_pool_size, settings);
near(pooledMasks, vectors.pooled_masks, 1e-4, "pooled masks");
const side = 2 * settings.mask_pool_size;
const [height, width] = vectors.size;
const objects = Array.from(found.classes, (_, i) => ({
  box: Array.from(found.boxes.slice(4 * i, 4 * i + 4), (v, axis) => (v * vectors.size[axis % 2]) / shape[axis % 2]),
  mask: found.masks.slice(i * side * side, (i + 1) * side * side),
  side,
}));
const pasted = objects.map((object) => Array.from(host.paste(object, height, width)).join(""));
const bits = pasted.reduce((sum, text, i) => sum + [...text].filter((v, j) => v !== vectors.pasted[i][j]).length, 0);
assert.ok(bits <= 2, `pasted: ${bits} pixels differ`); // at exactly one half the last digit decides
console.log(`pasted: ${pasted.length} masks, ${bits} pixels differ`);
const empty = await host.detect(async (name) => graphs[name], null, shape, { ...settings, score_threshold: 1 });
assert.equal(empty.classes.length, 0);
