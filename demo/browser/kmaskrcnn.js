// A .tflite exported by kmaskrcnn in LiteRT.js: pictures in, boxes and masks in their own pixels out.
import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

export class MaskRCNN {
  // `url` is that of the .tflite; its metadata are in the file beside it, NAME.metadata.json.
  static async load(url, wasm = "node_modules/@litertjs/core/wasm/") {
    await loadLiteRt(wasm);
    const model = new MaskRCNN();
    model.metadata = await (await fetch(url.replace(/\.tflite$/, ".metadata.json"))).json();
    [, model.height, model.width] = model.metadata.input.shape;
    model.compiled = await loadAndCompile(url, { accelerator: "wasm" });
    return model;
  }

  // The picture scaled to fit, top left, and the rest filled: (height * width * 3) uint8.
  letterbox(picture) {
    const scale = Math.min(this.height / picture.height, this.width / picture.width);
    const scaled = [picture.height, picture.width].map((side) => Math.max(Math.round(side * scale), 1));
    const canvas = new OffscreenCanvas(this.width, this.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillStyle = `rgb(${this.metadata.pad_value.join(",")})`;
    context.fillRect(0, 0, this.width, this.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, scaled[1], scaled[0]);
    const rgba = context.getImageData(0, 0, this.width, this.height).data;
    const pixels = new Uint8Array(this.height * this.width * 3);
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
      pixels[to++] = rgba[from];
      pixels[to++] = rgba[from + 1];
      pixels[to++] = rgba[from + 2];
    }
    return { pixels, scaled };
  }

  // `picture` is anything that drawImage takes. Boxes are [y0, x0, y1, x1] in its pixels; masks are side x side
  // probabilities over each box.
  async predict(picture) {
    const { pixels, scaled } = this.letterbox(picture);
    const input = new Tensor(pixels, [1, this.height, this.width, 3]);
    const start = performance.now();
    const outputs = await this.compiled.run({ images: input });
    const milliseconds = performance.now() - start;
    const values = {};
    for (const [name, tensor] of Object.entries(outputs)) {
      values[name] = Array.from(tensor.toTypedArray());
      tensor.delete();
    }
    input.delete();
    const count = values.num_detections[0];
    const side = Math.round(Math.sqrt(values.detection_masks.length / values.detection_scores.length));
    const stretch = [(this.height / scaled[0]) * picture.height, (this.width / scaled[1]) * picture.width];
    const objects = [];
    for (let i = 0; i < count; i++) {
      const number = values.detection_classes[i];
      objects.push({
        score: values.detection_scores[i],
        name: this.metadata.class_names[number - 1],
        box: values.detection_boxes.slice(4 * i, 4 * i + 4).map((v, axis) => v * stretch[axis % 2]),
        mask: values.detection_masks.slice(side * side * i, side * side * (i + 1)),
        side,
      });
    }
    return { objects, milliseconds };
  }
}

// Whether pixel (y, x) belongs to an object: its mask at the pixel's centre, bilinear, nothing outside the box.
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

// Paint the masks and boxes over the picture that a canvas shows.
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
  });
}
