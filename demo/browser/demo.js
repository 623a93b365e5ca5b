// The page. ?model=URL names the .tflite (default model.tflite), ?image=URL the first picture.
// With ?report=URL the result is posted there as JSON, for benchmarks/browser.py.
import { draw, MaskRCNN } from "./kmaskrcnn.js";

const query = new URLSearchParams(location.search);
const [canvas, status, score] = ["canvas", "status", "score"].map((id) => document.getElementById(id));
let model, picture, result;

function show() {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const shown = result.objects.filter((object) => object.score >= Number(score.value));
  draw(context, shown);
  status.textContent = `${shown.length} objects above ${score.value}, ${result.milliseconds.toFixed(0)} ms`;
  const rows = shown.slice(0, 20).map((o) => `<td>${o.name}<td>${o.score.toFixed(3)}<td>${o.box.map(Math.round)}`);
  document.getElementById("table").innerHTML = rows.map((row) => `<tr>${row}`).join("");
}

async function run(blob) {
  picture = await createImageBitmap(blob);
  result = await model.predict(picture);
  show();
}

async function main() {
  model = await MaskRCNN.load(query.get("model") || "model.tflite");
  status.textContent = "Choose a picture";
  document.getElementById("file").addEventListener("change", (event) => run(event.target.files[0]));
  score.addEventListener("input", () => result && show());
  if (query.has("image")) {
    await run(await (await fetch(query.get("image"))).blob());
    await run(await (await fetch(query.get("image"))).blob()); // the first run also sets the runtime up
  }
}

async function report(body) {
  if (query.has("report")) await fetch(query.get("report"), { method: "POST", body: JSON.stringify(body) });
}

main()
  .then(() => report(result))
  .catch((error) => {
    status.textContent = `Failed: ${error.message}`;
    return report({ error: String(error.stack || error) });
  });
