"""The picture of a workflow on ComfyUI's page, after a run: `uv run python docs/screenshot.py WORKFLOW PICTURE.jpg`.

Runs a ComfyUI with the pack in a temporary folder (COMFYUI_DIR, or a copy fetched once) and needs a Chromium. The
workflow has to run with the weights that come with the pack.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.request import Request, urlopen

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"width": 1700, "height": 860}
SECONDS = 300
# The graph without the page's bars, as large as the window allows.
FIT = """
() => {
    const bounds = window.app.graph.nodes.map(node => node.getBounding());
    const left = Math.min(...bounds.map(b => b[0])), top = Math.min(...bounds.map(b => b[1]));
    const right = Math.max(...bounds.map(b => b[0] + b[2])), bottom = Math.max(...bounds.map(b => b[1] + b[3]));
    const scale = Math.min((innerWidth - 140) / (right - left), (innerHeight - 150) / (bottom - top));
    const view = window.app.canvas.ds;
    view.scale = scale;
    view.offset[0] = 90 / scale - left;
    view.offset[1] = 110 / scale - top;
    window.app.canvas.setDirty(true, true);
}
"""


def take(address: str, workflow: dict, picture: Path) -> None:
    """Open the page, run a workflow, and save what is seen.

    Raises:
        SystemExit: if there is no browser.
    """
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    program = next((path for path in found if path is not None), None)
    if program is None:
        raise SystemExit("There is no Chromium on this machine. Install one and run this again.")
    body = json.dumps({"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}).encode()
    urlopen(Request(f"{address}/settings", body, {"Content-Type": "application/json"}), timeout=30).close()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(address)
        page.wait_for_function("window.app?.graph !== undefined", timeout=90_000)
        page.get_by_role("button", name="Templates").first.wait_for(timeout=90_000)
        page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        page.get_by_test_id("queue-button").click()
        _wait_for_video(page)
        page.evaluate(FIT)
        page.wait_for_timeout(2000)
        page.screenshot(path=picture, type="jpeg", quality=62)
        browser.close()


def _wait_for_video(page: Page) -> None:
    shown = "[...document.querySelectorAll('video')].some(v => v.videoWidth > 0)"
    page.wait_for_function(shown, timeout=SECONDS * 1000)
    page.wait_for_timeout(3000)


def main(workflow: Path, picture: Path) -> None:
    """Start ComfyUI and take the picture."""
    sys.path.insert(0, str(ROOT))
    from train.comfyui.server import find_comfyui, serve

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output, serve(find_comfyui(), Path(folder) / "base", log=output) as server:
            take(server.address, json.loads(workflow.read_text()), picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
