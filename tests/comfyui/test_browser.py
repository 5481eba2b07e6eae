"""The page as a person sees it: open the template, press Run, watch the video appear. Needs a Chromium."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from playwright.sync_api import sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium(lacking: Callable[[str, str], NoReturn]) -> str:
    """The browser's program."""
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        lacking("chromium", f"there is no browser on this machine, none of {', '.join(PROGRAMS)}")
    return program


@pytest.fixture
def page(chromium: str, server: Any) -> Iterator[Any]:
    """A window on the running ComfyUI, past the greeting of a first visit."""
    server.post("/settings", {"Comfy.TutorialCompleted": True})
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1800, "height": 1000})
        yield page
        browser.close()


def open_page(page: Any, address: str) -> None:
    """Load the page and wait until it takes clicks."""
    page.goto(address)
    page.get_by_role("button", name="Templates").first.wait_for(timeout=90_000)
    page.wait_for_function("window.app?.graph !== undefined", timeout=60_000)


def pack_nodes(page: Any) -> int:
    """How many of the pack's nodes are on the canvas."""
    return page.evaluate("window.app.graph.nodes.filter(node => node.type.startsWith('MagicDistill')).length")


def test_template_opens_runs_and_comes_back_from_its_video(page: Any, server: Any, tmp_path: Path) -> None:
    open_page(page, server.address)
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("magicdistillation").first.click(timeout=60_000)
    page.get_by_test_id("template-workflow-portrait_pocket").click(timeout=60_000)
    page.wait_for_function("window.app.graph.nodes.some(node => node.type === 'MagicDistillSaveVideo')", timeout=60_000)
    # Another take, so that nothing is answered from what an earlier test has run.
    page.evaluate(
        "window.app.graph.nodes.find(n => n.type === 'MagicDistillSampler')"
        ".widgets.find(w => w.name === 'seed').value = 4242"
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function(
        "[...document.querySelectorAll('video')].some(v => v.videoWidth === 96 && Math.abs(v.duration - 0.7) < 0.1)",
        timeout=180_000,
    )
    page.screenshot(path=tmp_path / "portrait_pocket.png")
    texts = page.evaluate("window.app.graph.nodes.flatMap(n => (n.widgets ?? []).map(w => String(w.value ?? '')))")
    assert any("timesteps 1000, 937.5, 833.3, 625" in text for text in texts)
    assert not page.get_by_test_id("error-overlay").is_visible()

    video = max((server.directory / "output" / "video").glob("portrait_*.mp4"), key=lambda file: file.stat().st_mtime)
    page.evaluate("window.app.graph.clear()")
    assert pack_nodes(page) == 0
    handle = page.evaluate_handle(
        """async bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], 'portrait.mp4', {type: 'video/mp4'}));
            return data;
        }""",
        list(video.read_bytes()),
    )
    page.dispatch_event("canvas#graph-canvas", "drop", {"dataTransfer": handle})
    page.wait_for_function("window.app.graph.nodes.filter(n => n.type.startsWith('MagicDistill')).length === 5")
    page.screenshot(path=tmp_path / "from_video.png")


def test_help_page_opens(page: Any, server: Any) -> None:
    text = page.request.get(f"{server.address}/extensions/magicdistillation/docs/MagicDistillSampler.md").text()
    assert text.startswith("# Few-step flow sampler")
