import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from magicdistill_core.media.video import read_video
from magicdistill_core.media.video_writing import write_video
from magicdistill_core.prompt_templates import TITLES
from train.commands.options import Template
from train.data.dataset import LatentDataset


@pytest.fixture
def still(tmp_path: Path) -> Path:
    path = tmp_path / "still.png"
    Image.new("RGB", (48, 40), "orange").save(path)
    return path


def test_help_names_every_command_and_does_not_wait_for_torch(magicdistill) -> None:
    status, out, _ = magicdistill("--help")
    assert status == 0
    for name in ("train", "memory", "prepare", "export", "report", "sample", "inspect", "demo", "comfyui", "pocket"):
        assert f" {name} " in out
    heavy = "import sys, train.cli; print([m for m in ('torch', 'diffusers', 'deepspeed') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_prompt_template_can_be_chosen() -> None:
    assert [template.value for template in Template] == list(TITLES)


def test_bad_input_is_one_paragraph_on_stderr(magicdistill, tmp_path: Path) -> None:
    status, out, err = magicdistill("inspect", tmp_path / "none.safetensors")
    assert (status, out) == (2, "")
    assert f"{tmp_path / 'none.safetensors'} " in err
    assert "Traceback" not in err
    status, _, err = magicdistill("--local_rank=1", "export", tmp_path, "--out", tmp_path / "a.safetensors")
    assert status == 2
    assert "run.json" in err


def test_under_a_launcher_each_process_names_itself(
    magicdistill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "[process" not in magicdistill("train", tmp_path / "none.yaml")[2]
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    err = magicdistill("train", tmp_path / "none.yaml")[2]
    assert err.startswith("[process 3] ")
    assert "none.yaml" in err


def test_a_misspelt_setting_is_named(magicdistill, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("run: x\n")
    status, _, err = magicdistill("train", tmp_path / "a.yaml", "updats=3", "--resume")
    assert status == 2
    assert "updats: " in err


def test_ctrl_c_is_quiet(magicdistill, monkeypatch: pytest.MonkeyPatch, teacher_file: Path) -> None:
    import train.tools.inspect_file

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.tools.inspect_file, "inspect_file", interrupted)
    status, _, err = magicdistill("inspect", teacher_file)
    assert status in (1, 130)
    assert "Traceback" not in err


def test_inspect_prints_recipe_and_hash(magicdistill, teacher_file: Path) -> None:
    status, out, _ = magicdistill("inspect", teacher_file, "--sha256")
    assert status == 0
    for text in ("HunyuanVideo transformer", "Tencent", "recipe: steps", "sha256"):
        assert text in out


def test_prepare_then_sample(magicdistill, tmp_path: Path, teacher_file: Path, taehv_file: Path, still: Path) -> None:
    frames = torch.randint(0, 256, (5, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "in" / "good.mp4", frames, 24.0)
    (tmp_path / "in" / "bad.mp4").touch()
    options = ["--frames", 5, "--height", 32, "--width", 32, "--dtype", "bf16", "--device", "cpu"]
    status, out, err = magicdistill(
        "prepare", "--videos", tmp_path / "in", "--out", tmp_path / "data", "--vae", taehv_file, *options
    )
    assert status == 0, err
    assert "1 samples added, 1 in" in out
    assert "bad.mp4" in out
    assert "bad.mp4 is empty" in err
    data = LatentDataset(tmp_path / "data")
    assert (len(data), data.index.dtype) == (1, "bfloat16")

    target = tmp_path / "out.mp4"
    options = ["--steps", 2, "--shift", 3, "--seed", 5, "--precision", "bf16", "--vae", taehv_file, "--device", "cpu"]
    status, out, err = magicdistill("sample", teacher_file, "--image", still, "--out", target, *options)
    assert status == 0, err
    assert "5 frames of 32 x 32 at 24 fps, 2 steps, shift 3, seed 5" in out
    assert len(list(read_video(target).frames)) == 5


def test_export_takes_its_options(
    magicdistill, tmp_path: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train.tools.export

    seen: list[object] = []
    monkeypatch.setattr(train.tools.export, "export_run", lambda *arguments: seen.extend(arguments))
    out = tmp_path / "x"
    options = ["--format", "diffusers", "--step", 7, "--dtype", "fp16", "--teacher", teacher_file]
    assert magicdistill("export", tmp_path, "--out", out, *options)[0] == 0
    assert seen == [tmp_path, out, "diffusers", 7, torch.float16, teacher_file]


def test_export_of_the_best_checkpoint(magicdistill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import train.tools.export
    from train.run_folder import Manifest

    folder = tmp_path / "checkpoints" / "step-000007"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(Manifest(7, {}, {}, 0.5, True, {}).to_json())
    (folder.parent / "best").write_text(folder.name)
    seen: list[object] = []
    monkeypatch.setattr(train.tools.export, "export_run", lambda *arguments: seen.extend(arguments))
    assert magicdistill("export", tmp_path, "--out", tmp_path / "x", "--best")[0] == 0
    assert seen[3] == 7
    status, _, err = magicdistill("export", tmp_path, "--out", tmp_path / "x", "--best", "--update", 3)
    assert status == 2
    assert "--best" in err
    assert "--update" in err


def test_unusable_devices_and_names_are_refused(magicdistill, tmp_path: Path, teacher_file: Path, still: Path) -> None:
    sampling = ["sample", teacher_file, "--image", still, "--out", tmp_path / "a.mp4"]
    status, _, err = magicdistill(*sampling, "--device", "toaster")
    assert status == 2
    assert "'toaster'" in err
    assert "Traceback" not in err
    assert magicdistill(*sampling, "--precision", "int4")[0] == 2


def test_prepare_that_a_signal_stops_says_how_to_continue(
    magicdistill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import train.data.prepare

    report = train.data.prepare.PrepareReport(added=3, total=3, skipped={"[x].mp4": "bad"}, stopped_by="SIGTERM")
    monkeypatch.setattr(train.data.prepare, "prepare", lambda *_: report)
    status, out, _ = magicdistill("prepare", "--videos", tmp_path, "--out", tmp_path / "[lora] data")
    assert status == 128 + 15
    assert "Stopped by SIGTERM" in out
    assert "[lora] data" in out
    assert "[x].mp4" in out
