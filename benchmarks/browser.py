"""Run a .tflite in headless Chromium on the page of demo/browser, compare with LiteRT here and take a screenshot.

    python -m benchmarks.browser MODEL.tflite PICTURE [--accelerator=wasm] [--screenshot=browser.png]

--accelerator=webgpu takes a file of --format=tflite_gpu and runs it on SwiftShader, in software, where there is no GPU.

Needs the page's one package (cd demo/browser && npm install) and Chromium. Browsers scale images in their own way, so
the image is scaled here and both get the same pixels. Exit code 1 where detections differ by more than --tolerance.
"""

import argparse
import functools
import http.server
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
from typing import ClassVar

import numpy as np
from PIL import Image

from benchmarks.runtimes import worst_differences
from kmaskrcnn.export.gpu_client import LiteRTGpuClient
from kmaskrcnn.export.litert_client import LiteRTClient, decode_image, letterbox, read_metadata

PAGE = pathlib.Path(__file__).parents[1] / "demo" / "browser"


class Handler(http.server.SimpleHTTPRequestHandler):
    """The page's files, the model beside them, the image, and the page's report."""

    files: ClassVar[dict[str, bytes]] = {}
    reports: ClassVar[list[dict]] = []
    reported: ClassVar[threading.Event] = threading.Event()

    def do_GET(self):
        if self.path == "/wait":
            self.reported.wait()
        content = self.files.get(self.path.split("?")[0])
        if content is None:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.reports.append(json.loads(body))
        self.reported.set()

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--screenshot", default="browser.png")
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="boxes are compared as shares of the image")
    parser.add_argument("--accelerator", choices=("wasm", "webgpu"), default="wasm")
    parser.add_argument("--timeout", type=float, default=120, help="seconds")
    options = parser.parse_args()
    if not (PAGE / "node_modules").is_dir():
        sys.exit(f"error: {PAGE}: run npm install there first")
    for_gpu = "host" in read_metadata(options.model)
    client = LiteRTGpuClient(options.model, "cpu") if for_gpu else LiteRTClient(options.model)
    original = decode_image(pathlib.Path(options.image).read_bytes())
    size = (client.height, client.width) if for_gpu else client.size_for(original.shape[:2])
    canvas, scaled = letterbox(original, *size, (0, 0, 0))
    pixels = canvas[: scaled[0], : scaled[1]]
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    expected = client.predict(pixels)

    model = pathlib.Path(options.model)
    Handler.files = {
        "/model.tflite": model.read_bytes(),
        "/model.metadata.json": model.with_name(f"{model.stem}.metadata.json").read_bytes(),
        "/image.png": encoded.getvalue(),
        # Chromium takes the screenshot once the page is loaded, which this image holds up until there is a result.
        "/index.html": (PAGE / "index.html").read_bytes() + b'<img src="wait" hidden>',
        "/wait": b"",
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(PAGE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = f"http://127.0.0.1:{server.server_port}/index.html?image=image.png&report=report"
    page += f"&accelerator={options.accelerator}"
    with tempfile.TemporaryDirectory() as profile:
        command = [options.chromium, "--headless=new", "--no-sandbox", f"--user-data-dir={profile}"]
        if options.accelerator == "webgpu":
            command += ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
        else:
            command += ["--disable-gpu"]
        command += [f"--screenshot={options.screenshot}", "--window-size=900,1100", page]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=options.timeout)
        except subprocess.TimeoutExpired:
            sys.exit(f"error: the page gave no result in {options.timeout:g} seconds")
    (report,) = Handler.reports
    if "error" in report:
        sys.exit(f"error: {report['error']}")
    found = report["objects"]
    print(f"{len(expected)} detections here, {len(found)} in the browser, {report['milliseconds']:.0f} ms there")
    size = np.array([expected.height, expected.width] * 2, np.float32)
    numbers = {name: i for i, name in enumerate(client.labels.class_names, 1)}
    worst = worst_differences(
        {
            "boxes": expected.boxes / size,
            "scores": expected.scores,
            "classes": expected.classes,
            "masks": expected.mask_probabilities.reshape(len(expected), -1),
        },
        {
            "boxes": np.array([o["box"] for o in found]).reshape(-1, 4) / size,
            "scores": np.array([o["score"] for o in found]),
            "classes": np.array([numbers[o["name"]] for o in found]),
            "masks": np.array([o["mask"] for o in found]).reshape(len(found), -1),
        },
    )
    if worst is None:
        print("the detections do not pair up")
        return 1
    print("worst difference: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
    return int(max(worst.values()) > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
