// The page. ?model=URL names the .tflite (default model.tflite), ?image=URL the first image, ?accelerator=webgpu|wasm.
// With ?report=URL the result is posted there as JSON, for benchmarks/browser.py.
import { draw, MaskRCNN } from "./kmaskrcnn.js";

const query = new URLSearchParams(location.search);
const byId = (id) => document.getElementById(id);
const [canvas, status, score, accelerator, camera] = ["canvas", "status", "score", "accelerator", "camera"].map(byId);
const models = {};
let picture, result, stream;

async function model() {
  const name = accelerator.value;
  status.textContent = "Loading…";
  models[name] ??= await MaskRCNN.load(query.get("model") || "model.tflite", name);
  return models[name];
}

function show() {
  canvas.width = picture.width;
  canvas.height = picture.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const shown = result.objects.filter((object) => object.score >= Number(score.value));
  draw(context, shown);
  const where = accelerator.selectedOptions[0].textContent;
  status.textContent = `${shown.length} objects above ${score.value}, ${result.milliseconds.toFixed(0)} ms, ${where}`;
  byId("table").replaceChildren(
    ...shown.slice(0, 20).map((object) => {
      const row = document.createElement("tr");
      for (const text of [object.name, object.score.toFixed(3), object.box.map(Math.round).join(", ")]) {
        row.insertCell().textContent = text;
      }
      return row;
    }),
  );
}

async function run(source) {
  picture = await createImageBitmap(source);
  result = await (await model()).predict(picture);
  show();
}

function fail(error) {
  status.textContent = `Failed: ${error.message}`;
}

// Frames of the camera, one after the other, until the button is pressed again.
async function toggleCamera() {
  if (stream) {
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
    camera.textContent = "Use the camera";
    return;
  }
  stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  camera.textContent = "Stop the camera";
  const video = document.createElement("video");
  video.srcObject = stream;
  video.muted = video.playsInline = true;
  await video.play();
  while (stream) {
    await run(video);
    await new Promise(requestAnimationFrame);
  }
}

async function main() {
  accelerator.value = query.get("accelerator") || (navigator.gpu ? "webgpu" : "wasm");
  const again = () => picture && run(picture).catch(fail);
  byId("file").addEventListener("change", (event) => event.target.files[0] && run(event.target.files[0]).catch(fail));
  accelerator.addEventListener("change", again);
  camera.addEventListener("click", () => toggleCamera().catch(fail));
  score.addEventListener("input", () => result && show());
  await model();
  status.textContent = "Choose an image";
  if (query.has("image")) {
    const blob = await (await fetch(query.get("image"))).blob();
    await run(blob);
    await run(blob); // the first run also sets the runtime up
  }
}

async function report(body) {
  if (query.has("report")) await fetch(query.get("report"), { method: "POST", body: JSON.stringify(body) });
}

main()
  .then(() => report(result))
  .catch((error) => {
    fail(error);
    return report({ error: String(error.stack || error) });
  });
