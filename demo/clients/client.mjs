// Objects of a photograph by REST: node client.mjs http://localhost:8501 mine photo.jpg
import {readFileSync} from "node:fs";

const [url, model, file] = process.argv.slice(2);
const answer = await fetch(`${url}/v1/models/${model}:predict`, {
  method: "POST",
  headers: {"Content-Type": "application/json"},
  body: JSON.stringify({instances: [{b64: readFileSync(file).toString("base64")}]}),
  signal: AbortSignal.timeout(60_000),
});
const tree = await answer.json();
if (!answer.ok) throw new Error(`${answer.status}: ${tree.error}`);
const [row] = tree.predictions;
if (row.image_errors) throw new Error(row.image_errors);
const [height, width] = row.image_sizes;
for (let i = 0; i < row.num_detections; i++) {
  const [top, left, bottom, right] = row.detection_boxes[i];
  const box = [top * height, left * width, bottom * height, right * width].map(v => v.toFixed(1));
  console.log(row.detection_classes[i], row.detection_scores[i].toFixed(3), box.join(" "));
}
