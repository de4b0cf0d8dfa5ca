"""
The page in headless Chromium, for its test and for the README's picture:

    python tests/demo_browser.py examples/demo.png
"""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SOUNDS = Path(__file__).resolve().parents[1] / "examples" / "audio"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# what would look for the network
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
QUIET += ["--disable-component-update", "--disable-quic"]


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """`hf-clap demo` with an index of the example sounds, started in `folder`; yields its address."""
    index = folder / "sounds.parquet"
    command = [sys.executable, "-m", "hf_clap"]
    subprocess.run([*command, "embed", SOUNDS, "-o", index, "--window", "4"], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command += ["demo", "--index", str(index), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, "the page has ended"
                    assert time.monotonic() < deadline, "the page does not answer"
                    time.sleep(0.2)
            yield address
        finally:
            server.terminate()


@contextmanager
def open_page(address: str) -> Iterator[Page]:
    """The page in a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(60_000)
        page.goto(address)
        page.get_by_text("What does it sound like?").wait_for()
        yield page
        browser.close()


def tag(page: Page, file: Path, labels: str) -> None:
    """Upload a sound, set the labels and press the button."""
    page.locator("input[type=file]").first.set_input_files(file)
    page.get_by_label("Labels, separated by commas").fill(labels)
    page.get_by_role("button", name="Tag", exact=True).click()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder)) as address, open_page(address) as page:
        tag(page, SOUNDS / "long_scene.flac", "siren, rain, church bell, ticking clock, bird singing")
        page.locator("img[alt*='lot'], .gradio-plot img, img.layout").first.wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=sys.argv[1])
