"""Save portrait video on a running ComfyUI: every format, VIDEO inputs, sound, tags, names, bad inputs."""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from magicdistill_core.media.audio import waveform_audio
from magicdistill_core.media.video import read_tags, read_video
from magicdistill_core.media.video_writing import FORMATS, MP4, MP4_10_BIT, PRORES, WEBM, WEBP, write_video
from magicdistill_core.pocket.render import portrait_clip
from tests.makers import StockSide

# Unbalanced braces: a reader that counts braces must still find the end of a tag.
WORKFLOW = {"nodes": [{"id": 1, "type": "Note", "widgets_values": ['a "{" and {{ and \\"{']}], "links": []}
RECORD = json.dumps({"seed": 3, "sigmas": [1.0, 0.5, 0.0], "sha256": "ab" * 32})


def prompt(**save: Any) -> dict[str, Any]:
    """Return a prompt that saves a portrait of 64 x 64."""
    settings = {"video": ["portrait", 0], "fps": 8.0, "filename_prefix": "save/clip", "format": MP4.title, "crf": 18.0}
    return {
        "portrait": {"class_type": "MagicDistillPocketPortrait", "inputs": {"seed": 1, "size": 64}},
        "save": {"class_type": "MagicDistillSaveVideo", "inputs": settings | save},
    }


def with_video(source: str, **save: Any) -> dict[str, Any]:
    """Return a prompt that saves a VIDEO from the input folder."""
    return prompt(video=["load", 0], **save) | {"load": {"class_type": "LoadVideo", "inputs": {"file": source}}}


def saved(server: Any, outputs: dict) -> Path:
    """Return the path of the saved file."""
    (entry,) = outputs["save"]["files"]
    assert entry["type"] == "output"
    return server.directory / "output" / entry["subfolder"] / entry["filename"]


def levels(path: Path) -> list[int]:
    """Return the frame numbers of a counted clip, from their grey values."""
    return [round(float(frame.float().mean()) / 10) for frame in read_video(path).frames]


@pytest.fixture(scope="module")
def counted(server: Any) -> str:
    """Write a file of 24 frames at 12 fps into the input folder: frame n has grey 10n, with two seconds of sound."""
    grey = 10 * torch.arange(24, dtype=torch.uint8)
    frames = grey.view(-1, 1, 1, 1).expand(-1, 48, 64, 3)
    ramp = torch.linspace(0, 1, 2 * 44100)[None]
    audio = waveform_audio(ramp, 44100)
    write_video(server.directory / "input" / "counted.mov", frames, 12, format=PRORES, audio=audio)
    return "counted.mov"


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.title)
def test_every_format_keeps_tags_next_to_the_sound_and_is_shown(format: Any, server: Any) -> None:
    asked = prompt(format=format.title, audio=["sound", 0], record=["record", 0])
    asked |= {
        "sound": {"class_type": "EmptyAudio", "inputs": {"duration": 1.0, "sample_rate": 44100, "channels": 2}},
        "record": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": RECORD}},
    }
    outputs = server.run(asked, WORKFLOW)
    path = saved(server, outputs)
    assert path.suffix == format.suffix
    tags = read_tags(path)
    assert json.loads(tags["workflow"]) == WORKFLOW
    assert json.loads(tags["prompt"])["save"]["inputs"]["format"] == format.title
    assert tags["magicdistill"] == RECORD
    # The page shows the file itself, or a small h264 copy of the same length if few browsers play the format.
    (shown,) = outputs["save"]["images"]
    assert outputs["save"]["animated"] == [True]
    folder = "output" if format.plays_anywhere else "temp"
    assert shown["type"] == folder
    preview = server.directory / folder / shown["subfolder"] / shown["filename"]
    (text,) = outputs["save"]["text"]
    assert f"{path.name}: 1 frame of 64 x 64, 8 fps" in text
    assert ("no sound" in text) == (format is WEBP)
    if format is WEBP:
        with Image.open(path) as image:
            assert image.size == (64, 64)
        return
    with av.open(str(path)) as container:
        assert container.streams.video[0].pix_fmt == format.pixels
        assert len(container.streams.audio) == 1
    with av.open(str(preview)) as container:
        assert container.streams.video[0].pix_fmt == "yuv420p"
        assert len(list(container.decode(video=0))) == 1


def test_a_video_of_a_file_keeps_its_frames_rate_and_sound(server: Any, counted: str) -> None:
    path = saved(server, server.run(with_video(counted, fps=99.0)))
    assert levels(path) == list(range(24))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 12
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        assert sound.shape[1] == pytest.approx(2 * 44100, abs=2048)
        assert sound[0, 44100] == pytest.approx(0.5, abs=0.05)


def test_a_trimmed_video_is_saved_as_trimmed(server: Any, counted: str) -> None:
    asked = with_video(counted, format=WEBM.title)
    asked["cut"] = {
        "class_type": "Video Slice",
        "inputs": {"video": ["load", 0], "start_time": 0.5, "duration": 1.0, "strict_duration": False},
    }
    asked["save"]["inputs"]["video"] = ["cut", 0]
    assert levels(saved(server, server.run(asked))) == list(range(6, 18))


@pytest.mark.parametrize("source", ["late.mkv", "late.mp4", "late.ts"])
def test_sound_stays_with_the_picture_of_files_that_begin_late(
    source: str, server: Any, write_late_clip: Callable[[Path, float, float], None]
) -> None:
    write_late_clip(server.directory / "input" / source, 2.0, 2.0)
    path = saved(server, server.run(with_video(source)))
    with av.open(str(path)) as container:
        white = [frame.time for frame in container.decode(video=0) if frame.to_ndarray(format="gray8").mean() > 128]
    with av.open(str(path)) as container:
        sound = [(frame.time, frame.rate, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    loud = [time + (np.abs(wave) > 0.1).argmax() / rate for time, rate, wave in sound if np.abs(wave).max() > 0.1]
    assert white[0] == pytest.approx(1)
    assert loud[:1] == pytest.approx(white[:1], abs=0.005)


def test_ten_bits_come_through_from_file_to_file(server: Any) -> None:
    ramp = torch.linspace(0.2, 0.4, 512)[None, :, None].expand(64, -1, 3)[None]
    write_video(server.directory / "input" / "ramp.mov", ramp, 12, format=PRORES)
    path = saved(server, server.run(with_video("ramp.mov", format=MP4_10_BIT.title, crf=0.0)))
    (frame,) = read_video(path, deep=True).frames
    assert len(frame[32, :, 1].unique()) > 150


def test_a_video_of_tensors_is_saved_with_its_rate_and_sound(server: Any) -> None:
    asked = prompt(video=["create", 0], fps=99.0)
    asked |= {
        "sound": {"class_type": "EmptyAudio", "inputs": {"duration": 1.0, "sample_rate": 44100, "channels": 2}},
        "create": {
            "class_type": "CreateVideo",
            "inputs": {"images": ["portrait", 0], "fps": 5.0, "audio": ["sound", 0]},
        },
    }
    with av.open(str(saved(server, server.run(asked)))) as container:
        assert container.streams.video[0].average_rate == 5
        assert len(container.streams.audio) == 1


def test_colours_of_a_file_are_kept(server: Any) -> None:
    clip = portrait_clip(11, 3, 96)
    write_video(server.directory / "input" / "colours.mp4", clip, 12, crf=0)
    path = saved(server, server.run(with_video("colours.mp4", crf=0.0)))
    difference = torch.stack(list(read_video(path).frames)).float() - torch.as_tensor(clip).float()
    assert difference.mean((0, 1, 2)).abs().max() < 0.4
    assert difference.abs().mean() < 4


BAD_VIDEOS = {
    "empty": (b"", r"empty\.mp4 is empty"),
    "no video": (b"no video at all", r"no video\.mp4 .*h264"),
}


@pytest.mark.parametrize("case", list(BAD_VIDEOS))
def test_bad_videos_are_explained(case: str, server: Any) -> None:
    content, part = BAD_VIDEOS[case]
    (server.directory / "input" / f"{case}.mp4").write_bytes(content)
    before = written(server)
    error = server.error_of(with_video(f"{case}.mp4"))
    assert error["node_type"] == "MagicDistillSaveVideo"
    assert re.search(part, error["exception_message"])
    assert written(server) == before


def test_a_damaged_video_leaves_nothing_behind(server: Any) -> None:
    source = server.directory / "input" / "cut.mkv"
    write_video(source, torch.rand(30, 64, 64, 3), 12)
    content = bytearray(source.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    source.write_bytes(content)
    before = written(server)
    entry = server.wait(server.queue(with_video("cut.mkv", format=PRORES.title)))
    if entry["status"]["status_str"] != "success":
        assert written(server) == before
    assert server.get("/system_stats"), "the server is gone"


def written(server: Any) -> set[Path]:
    """Return every file of the output folder and the temporary folder."""
    return {path for name in ("output", "temp") for path in (server.directory / name).rglob("*") if path.is_file()}


NAMES = [
    "../out",
    "a/../../out",
    "/tmp/out",
    "C:\\out",
    "..\\out",
    "\\\\host\\out",
    " ",
    ".",
    "./",
    "a\0b",
    "a\nb",
    "\ud800",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_outside_the_folder_are_refused_before_anything_runs(name: str, server: Any) -> None:
    before = written(server)
    (error,) = server.refusal_of(prompt(filename_prefix=name))["node_errors"]["save"]["errors"]
    assert "filename prefix " in error["details"]
    assert "output folder" in error["details"]
    assert written(server) == before


@pytest.mark.parametrize("name", ["x" * 300, "save/" + "y/" * 3000 + "z"])
def test_names_that_are_too_long_are_refused_before_anything_runs(name: str, server: Any) -> None:
    (error,) = server.refusal_of(prompt(filename_prefix=name))["node_errors"]["save"]["errors"]
    assert f"filename prefix '{name[:20]}" in error["details"]
    assert "too long" in error["details"]


@pytest.mark.parametrize("name", ["save/ünï 中文", "save/%width%x%height%", "save/a.b", "save/with space/"])
def test_unusual_names_are_accepted(name: str, server: Any) -> None:
    path = saved(server, server.run(prompt(filename_prefix=name)))
    assert path.is_file()
    assert (server.directory / "output").resolve() in path.resolve().parents
    assert "64x64" in path.name or "%" not in name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("codes/%date:yyyy-MM-dd%/x", r"codes/\d{4}-\d\d-\d\d/x_"),
        ("codes/%date:hh:mm:ss%", r"codes/\d\d_\d\d_\d\d_"),
        ("codes/%date:dd.M.yy%", r"codes/\d\d\.\d{1,2}\.\d\d_"),
        ("codes/%year%_%width%", r"codes/20\d\d_64_"),
        ('codes/a:b*c?"<d>|', "codes/a_b_c___d___"),
        ("codes\\back\\slash", "codes/back/slash_"),
        ("codes/aux/nul.x", "codes/aux_/nul_.x_"),
        ("codes/50%_or_60%", "codes/50%_or_60%_"),
    ],
)
def test_codes_and_characters_become_a_name_for_every_system(name: str, expected: str, server: Any) -> None:
    outputs = server.run(prompt(filename_prefix=name))
    path = saved(server, outputs)
    assert re.fullmatch(expected + r"\d{5}_\.mp4", str(path.relative_to(server.directory / "output")))
    assert ("Windows" in outputs["save"]["text"][0]) == (":b" in name)


def test_codes_for_widgets_are_refused_before_sampling_and_kept_afterwards(server: Any) -> None:
    name = "codes/%MagicDistillSampler.seed%"
    (error,) = server.refusal_of(prompt(filename_prefix=name))["node_errors"]["save"]["errors"]
    assert "%MagicDistillSampler.seed%" in error["details"]
    # A name from another node is known only after sampling: the video must not be lost.
    linked = prompt(filename_prefix=["text", 0])
    linked["text"] = {"class_type": "PrimitiveString", "inputs": {"value": name}}
    outputs = server.run(linked)
    assert saved(server, outputs).is_file()
    assert "was not replaced" in outputs["save"]["text"][0]


def test_only_webp_accepts_odd_sides(server: Any) -> None:
    asked = prompt(format=WEBP.title)
    asked["portrait"]["inputs"]["size"] = 65
    with Image.open(saved(server, server.run(asked))) as image:
        assert image.size == (65, 65)
    asked["save"]["inputs"]["format"] = WEBM.title
    assert re.search(f"65 x 65.*{re.escape(WEBM.title)}.*even", server.error_of(asked)["exception_message"])


def test_memory_of_the_server_does_not_grow_with_the_length_of_a_video(server: Any) -> None:
    """400 frames of 640 x 480 are 352 MiB of bytes, and 1.4 GiB as the floats of an IMAGE."""
    picture = torch.linspace(0, 1, 640)[None, :, None].expand(480, -1, 3)
    write_video(server.directory / "input" / "many.mp4", (picture.roll(n, 1) for n in range(400)), 24, crf=40)
    process = Path("/proc", str(server_process()))
    (process / "clear_refs").write_text("5")  # reset the peak
    before = peak(process)
    path = saved(server, server.run(with_video("many.mp4", crf=40.0)))
    assert read_video(path).count == 400
    assert peak(process) - before < 200


def server_process() -> int:
    """Return the process id of the running ComfyUI, a child of this process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"main.py" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    pytest.fail("the server is no child of this process")


def peak(process: Path) -> float:
    """Return the peak memory of a process in MiB."""
    lines = (process / "status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def test_saving_can_be_cancelled(server: Any) -> None:
    frames = (torch.full((256, 256, 3), n % 256, dtype=torch.uint8) for n in range(2000))
    write_video(server.directory / "input" / "long.mp4", frames, 24, crf=51)
    before = written(server)
    prompt_id = server.queue(with_video("long.mp4", format=PRORES.title, filename_prefix="save/long"))
    end = time.monotonic() + 60
    while not list((server.directory / "output" / "save").glob(".long*")) and time.monotonic() < end:
        time.sleep(0.02)
    server.post("/interrupt", {})
    assert "execution_interrupted" in dict(server.wait(prompt_id, 60)["status"]["messages"])
    assert written(server) == before


def test_videos_that_are_saved_at_once_get_names_of_their_own(stock_side: StockSide, tmp_path: Path) -> None:
    """As in two ComfyUIs with one output folder. Nothing else is left in the folder."""
    shades = [0.1, 0.3, 0.5, 0.7, 0.9]
    stock_side([{"run": "saving", "folder": str(tmp_path), "shades": shades}])
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"clip_{number:05}_.mp4" for number in range(1, 6)]
    found = sorted(float(next(read_video(file).frames).float().mean()) / 255 for file in files)
    assert found == pytest.approx(shades, abs=0.02)


def test_first_frames_are_left_out_as_the_record_or_the_input_says(stock_side: StockSide, tmp_path: Path) -> None:
    record = json.dumps({"seed": 3, "dropped_frames": 4})
    settings = {
        "plain": {},
        "recorded": {"record": record},
        "set": {"drop_frames": 2, "record": record},
        "none": {"drop_frames": 0, "record": record},
        "strange": {"record": "a text"},
        "all": {"drop_frames": 9},
    }
    (answer,) = stock_side([{"run": "dropping", "folder": str(tmp_path), "frames": 9, "settings": settings}])
    said = {name: bytes(text.tolist()).decode() for name, text in answer.items()}
    for name, kept in {"plain": 9, "recorded": 5, "set": 7, "none": 9, "strange": 9, "video": 9}.items():
        assert f"{kept} frames" in said[name]
        (file,) = tmp_path.glob(f"{name}_*.mp4")
        first = float(next(read_video(file).frames).float().mean()) / 255
        assert first == pytest.approx((9 - kept) / 8, abs=0.02)
    assert "a VIDEO keeps all its frames" in said["video"]
    assert "has 9 frames" in said["all"]
    assert "leaves none" in said["all"]
