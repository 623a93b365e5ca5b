"""The page at `/` in a real browser, with the model that ships in the package."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("litserve")
selenium = pytest.importorskip("selenium.webdriver")

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

from tests.weights.test_shipped import nuclei  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed"),
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="ChromeDriver is not installed"),
]
ROOT = Path(__file__).parents[2]
PRESET = "nuclei_mobilenet_v2"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The URL of a running server."""
    folder = tmp_path_factory.mktemp("page")
    export = ("export", f"--preset={PRESET}", f"--output={folder / 'nuclei'}", "--noverify")
    subprocess.run([sys.executable, "-m", "kmaskrcnn", *export], cwd=ROOT, check=True, timeout=300)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "kmaskrcnn", "serve", f"--model={folder / 'nuclei'}", f"--port={port}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=(folder / "log").open("w"), start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        WebDriverWait(url, 300, ignored_exceptions=[OSError]).until(
            lambda url: urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
        )
        assert not re.search("UserWarning|cuInit|InitializeLog", (folder / "log").read_text())
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = selenium.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    driver = selenium.Chrome(options, selenium.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def choose(browser, path):
    """Give the page a file; returns its words once there is an answer."""
    browser.find_element(By.ID, "file").send_keys(str(path))
    status = browser.find_element(By.ID, "status")
    return WebDriverWait(browser, 120).until(lambda _: status.text.strip("…") and status.text)


def canvas(browser):
    """(H, W, 3) pixels of the canvas."""
    size, data = browser.execute_script("""
        const canvas = document.getElementById("canvas"), {width, height} = canvas;
        const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return [[height, width, 4], Array.from(data)];""")
    return np.array(data).reshape(size)[..., :3]


def test_a_chosen_photograph_is_shown_with_its_masks(address, browser, tmp_path):
    image, masks = nuclei()
    Image.fromarray(image).save(tmp_path / "cells.png")
    browser.get(address)
    assert browser.title == "nuclei"
    assert choose(browser, tmp_path / "cells.png") == f"{len(masks)} objects"
    shown = canvas(browser)
    assert shown.shape == (*masks[0].shape, 3)
    # The image is gray, so that what has a color is a mask, a box or a name.
    colored = np.ptp(shown, axis=-1) > 20
    for mask in masks:
        assert colored[mask].mean() > 0.8
    score = browser.find_element(By.ID, "score")
    browser.execute_script("arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", score)
    assert browser.find_element(By.ID, "status").text == "0 objects"
    assert np.ptp(canvas(browser), axis=-1).max() == 0


def test_what_is_no_image_is_refused_in_words(address, browser, tmp_path):
    (tmp_path / "junk.jpg").write_bytes(b"junk")
    browser.get(address)
    words = choose(browser, tmp_path / "junk.jpg")
    assert words.startswith("No answer: ") and "not a JPEG" in words
