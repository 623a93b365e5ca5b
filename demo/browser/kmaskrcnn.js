// A .tflite exported by kmaskrcnn in LiteRT.js: images in, boxes and masks in their own pixels out.
// A file of --format=tflite_gpu runs in WebGPU or WebAssembly, one of --format=tflite in WebAssembly.
import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { covers, detect } from "./host.js";

let runtime;

export class MaskRCNN {
  // `url` is that of the .tflite; its metadata are in the file beside it, NAME.metadata.json. `accelerator` is "webgpu"
  // or "wasm".
  static async load(url, accelerator = "wasm", wasm = "node_modules/@litertjs/core/wasm/") {
    runtime ??= loadLiteRt(wasm);
    await runtime;
    const model = new MaskRCNN();
    model.metadata = await (await fetch(url.replace(/\.tflite$/, ".metadata.json"))).json();
    const first = model.metadata.input.shape.slice(1, 3);
    model.inputs = Object.entries(model.metadata.signatures ?? { serving_default: first }).map(
      ([signature, [height, width]]) => ({ signature, height, width }),
    );
    if (accelerator === "webgpu" && !model.metadata.host) {
      throw new Error("this file is for the CPU: export it with --format=tflite_gpu for WebGPU");
    }
    model.compiled = await loadAndCompile(url, { accelerator });
    if (accelerator === "webgpu" && !model.compiled.isFullyAccelerated) {
      throw new Error("WebGPU does not take the whole model here: choose WebAssembly");
    }
    return model;
  }

  // The input whose aspect ratio is nearest to that of an image.
  inputFor(picture) {
    const distance = ({ height, width }) => Math.abs(Math.log((height * picture.width) / (width * picture.height)));
    return this.inputs.reduce((best, other) => (distance(other) < distance(best) ? other : best));
  }

  // The image scaled to fit, top left, and the rest filled: RGB in 0..255, and its height and width there.
  letterbox(picture, { height, width }) {
    const scale = Math.min(height / picture.height, width / picture.width);
    const scaled = [picture.height, picture.width].map((side) => Math.max(Math.round(side * scale), 1));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, scaled[1], scaled[0]);
    const rgba = context.getImageData(0, 0, width, height).data;
    const pixels = new (this.metadata.host ? Float32Array : Uint8Array)(height * width * 3);
    const padding = this.metadata.pad_value;
    for (let y = 0, to = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const inside = y < scaled[0] && x < scaled[1];
        const from = 4 * (y * width + x);
        for (let c = 0; c < 3; c++) pixels[to++] = inside ? rgba[from + c] : padding[c];
      }
    }
    return { pixels, scaled };
  }

  // Run one of the graphs of a file for the GPU; outputs by name, as typed arrays.
  async run(graph, values) {
    const { host, input } = this.metadata;
    const [name, shape] = {
      pyramid: ["images", input.shape],
      boxes: ["pooled", [host.rpn_post_nms_top_k, host.box_pool_size, host.box_pool_size, host.channels]],
      masks: ["pooled", [host.max_detections, host.mask_pool_size, host.mask_pool_size, host.channels]],
    }[graph];
    return this.#call({ [name]: new Tensor(values, shape) }, graph);
  }

  async #call(inputs, signature) {
    const outputs = await this.compiled.run(signature, inputs);
    const values = {};
    for (const [name, tensor] of Object.entries(outputs)) {
      const here = await tensor.moveTo("wasm"); // takes the tensor along
      values[name] = here.toTypedArray().slice();
      here.delete();
    }
    for (const tensor of Object.values(inputs)) if (!tensor.deleted) tensor.delete();
    return values;
  }

  // `picture` is anything that drawImage takes. Boxes are [y0, x0, y1, x1] in its pixels; masks are side x side
  // probabilities over each box.
  async predict(picture) {
    const input = this.inputFor(picture);
    const { pixels, scaled } = this.letterbox(picture, input);
    const start = performance.now();
    const found = this.metadata.host
      ? await detect((graph, values) => this.run(graph, values), pixels, scaled, this.metadata.host)
      : await this.#whole(pixels, scaled, input);
    const milliseconds = performance.now() - start;
    const count = found.scores.length;
    const side = count ? Math.round(Math.sqrt(found.masks.length / count)) : 0;
    const size = [picture.height, picture.width];
    const objects = Array.from({ length: count }, (_, i) => ({
      score: found.scores[i],
      name: this.metadata.class_names[found.classes[i] - 1],
      box: Array.from(found.boxes.subarray(4 * i, 4 * i + 4), (v, axis) =>
        Math.min((v / scaled[axis % 2]) * size[axis % 2], size[axis % 2]),
      ),
      mask: Array.from(found.masks.subarray(side * side * i, side * side * (i + 1))),
      side,
    }));
    return { objects, milliseconds };
  }

  // A file for the CPU: the whole model is one graph for each size. Boxes in pixels of the input.
  async #whole(pixels, scaled, { signature, height, width }) {
    const inputs = {
      images: new Tensor(pixels, [1, height, width, 3]),
      image_shape: new Tensor(Int32Array.from(scaled), [1, 2]),
    };
    const values = await this.#call(inputs, signature);
    const count = values.num_detections[0];
    const cells = values.detection_masks.length / values.detection_scores.length;
    return {
      boxes: values.detection_boxes.subarray(0, 4 * count).map((v, i) => v * (i % 2 ? width : height)),
      scores: values.detection_scores.subarray(0, count),
      classes: values.detection_classes.subarray(0, count),
      masks: values.detection_masks.subarray(0, cells * count),
    };
  }
}

// Paint the masks and boxes over the image that a canvas shows.
export function draw(context, objects) {
  const { width, height } = context.canvas;
  const image = context.getImageData(0, 0, width, height);
  const color = (i) => {
    const hue = (i * 137.5) % 360;
    return [0, 120, 240].map((shift) => 128 + 127 * Math.cos(((hue + shift) * Math.PI) / 180));
  };
  objects.forEach((object, i) => {
    const [y0, x0, y1, x1] = object.box;
    const rgb = color(i);
    for (let y = Math.max(Math.floor(y0), 0); y < Math.min(Math.ceil(y1), height); y++) {
      for (let x = Math.max(Math.floor(x0), 0); x < Math.min(Math.ceil(x1), width); x++) {
        if (!covers(object, y, x)) continue;
        const at = 4 * (y * width + x);
        for (let c = 0; c < 3; c++) image.data[at + c] = 0.5 * image.data[at + c] + 0.5 * rgb[c];
      }
    }
  });
  context.putImageData(image, 0, 0);
  objects.forEach((object, i) => {
    const [y0, x0, y1, x1] = object.box;
    context.strokeStyle = `rgb(${color(i).join(",")})`;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const label = `${object.name} ${object.score.toFixed(2)}`;
    context.font = "12px system-ui, sans-serif";
    const width = context.measureText(label).width + 6;
    if (2 * (x1 - x0) < width) return; // it would hide the neighbors of a small object
    context.fillStyle = context.strokeStyle;
    context.fillRect(x0, Math.max(y0 - 15, 0), width, 15);
    context.fillStyle = "#000";
    context.fillText(label, x0 + 3, Math.max(y0 - 15, 0) + 11);
  });
}
