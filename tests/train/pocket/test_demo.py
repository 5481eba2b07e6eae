"""The demo from its start to its pictures, with one update of a tiny network."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from magicdistill_core.checkpoint import load_checkpoint
from magicdistill_core.lora_file import is_lora
from magicdistill_core.media.video import read_video

pytestmark = pytest.mark.slow

# One clip an update and one update, because the demo's own size takes minutes.
SMALL = """
import sys
from pathlib import Path
from train.pocket import demo
preset = Path(sys.argv[1]) / "preset.yaml"
preset.write_text(f"extends: {demo.PRESET}\\nupdates: 1\\ndata: {{micro_batch: 1}}\\nmethod: {{fake_updates: 1}}\\n"
                  "validation: {every: 0}\\n")
demo.PRESET, demo.CLIPS = preset, 2
demo.demo(Path(sys.argv[1]) / "out")
"""


def test_the_demo_makes_everything_that_it_announces(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SMALL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "out"
    for fact in ("start image", "teacher, 28 steps", "this run (1 updates), 4 steps", "1 step ", "network calls"):
        assert fact in done.stdout
    generator = load_checkpoint(out / "generator.safetensors")
    assert generator.recipe is not None
    assert (generator.recipe.steps, generator.recipe.training_step) == (4, 1)
    assert is_lora(out / "fake_lora.safetensors")
    assert len(list(read_video(out / "portrait.mp4").frames)) == 17
    with Image.open(out / "compare.png") as sheet:
        assert sheet.height == 6 * (24 + 192 + 4)
    with Image.open(out / "compare.webp") as moving:
        assert moving.n_frames == 17
    again = subprocess.run([sys.executable, "-c", SMALL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "already holds a demo" in again.stderr
