"""Long portrait video in a running ComfyUI: segments, single changes, cancelling, prompts, and bad inputs."""

import json
import re
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from magicdistill_core.long_video.making import SEGMENTS_TAG
from magicdistill_core.media.audio import waveform_audio
from magicdistill_core.media.video import read_tags
from magicdistill_core.media.video_writing import write_video

from .prompts import CHAIN, SAMPLED, Prompt, changed

pytestmark = pytest.mark.slow

LONG: Prompt = {name: node for name, node in SAMPLED.items() if name != "sample"} | {
    "long": {
        "class_type": "MagicDistillLongVideo",
        "inputs": {"model": ["load", 0], "vae": ["vae", 0], "conditioning": ["video", 0], "latent": ["video", 1]}
        | {"seconds": 5.0, "seed": 3, "steps": 0, "shift": 0.0, "sampler": "recipe", "filename_prefix": "long/tiny"},
    }
}


def prompt(**long: Any) -> Prompt:
    return changed(LONG, long=long)


def saved(server: Any, outputs: dict, node: str = "long") -> Path:
    (entry,) = outputs[node]["images"]
    return server.directory / "output" / entry["subfolder"] / entry["filename"]


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def new_segments(outputs: dict) -> int:
    (text,) = outputs["long"]["text"]
    return int(re.search(r"of which (\d+) are new", text)[1])


def test_a_long_video_begins_as_a_short_one_and_goes_on(server: Any) -> None:
    outputs = server.run(prompt(match_colors=False))
    long = frames(saved(server, outputs))
    tags = read_tags(saved(server, outputs))
    record = json.loads(tags[SEGMENTS_TAG])
    count, step = len(record["segments"]), record["segments"][1]["first_frame"]
    assert new_segments(outputs) == count >= 3
    assert json.loads(tags["prompt"])["long"]["inputs"]["seconds"] == 5.0
    assert json.loads(tags["magicdistill"])["steps"] == 4
    short = frames(saved(server, server.run(changed(CHAIN, save={"filename_prefix": "long/short"})), "save"))
    # The last frame of the short video is cross-faded into the second segment.
    assert step == len(short) - 1
    assert np.abs(long[:step].astype(float) - short[:step]).mean() < 1.5
    assert len({entry["seed"] for entry in record["segments"]}) == count

    # Nothing is new: the same video from what is kept, with another name.
    again = server.run(prompt(match_colors=False, crf=19.0))
    assert new_segments(again) == 0
    assert saved(server, again) != saved(server, outputs)
    # Another seed of the last segment, and another portrait.
    changed_seed = server.run(prompt(match_colors=False, segment_seeds=f"{count}: 12"))
    assert new_segments(changed_seed) == 1
    found = frames(saved(server, changed_seed))
    assert np.abs(found[: step * (count - 1)].astype(float) - long[: step * (count - 1)]).mean() < 1.5
    other = changed(prompt(match_colors=False), portrait={"seed": 2})
    assert new_segments(server.run(other)) == count


def test_a_cancelled_run_keeps_its_segments(server: Any) -> None:
    running = prompt(seconds=600.0, seed=11, filename_prefix="long/cancelled")
    queued = server.queue(running)
    folder = server.directory / "output" / "long" / "segments" / "cancelled"
    end = time.monotonic() + 120
    while len(list(folder.glob("*.json"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)
    server.post("/interrupt", {})
    messages = dict(server.wait(queued)["status"]["messages"])
    assert "execution_interrupted" in messages
    (begun,) = (server.directory / "output" / "long").glob("cancelled*.unfinished.mp4")
    assert len(frames(begun)) > 0
    kept = len(list(folder.glob("*.json")))
    outputs = server.run(changed(running, long={"seconds": 5.0}))
    assert new_segments(outputs) == 0
    assert kept >= len(json.loads(read_tags(saved(server, outputs))[SEGMENTS_TAG])["segments"])


def test_each_segment_has_its_prompt(server: Any) -> None:
    told = changed(prompt(seed=5, filename_prefix="long/told"), load={"unet_name": "told.safetensors"})
    told["lines"] = {
        "class_type": "MagicDistillSegmentPrompts",
        "inputs": {"model": ["load", 0], "prompts": "speaks\nNods"},
    }
    told["long"]["inputs"]["prompts"] = ["lines", 0]
    outputs = server.run(told)
    record = json.loads(read_tags(saved(server, outputs))[SEGMENTS_TAG])
    assert [entry["prompt"].split()[0] for entry in record["segments"]][:3] == ["speaks", "Nods", "Nods"]
    # One more line: the first two segments are kept.
    more = server.run(changed(told, lines={"prompts": "speaks\nNods\nspeaks"}))
    assert new_segments(more) == len(record["segments"]) - 2
    error = server.error_of(changed(told, lines={"prompts": "speaks\nsings"}))
    assert "Line 2 of the prompts ('sings')" in error["exception_message"]
    error = server.error_of(changed(told, lines={"prompts": "\n".join(["speaks"] * 99)}))
    assert re.search("99 prompts, but the video has .* segments", error["exception_message"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"video": {"batch_size": 2}}, "holds 2 videos"),
        ({"long": {"segment_seeds": "1: x"}}, "seed of a segment"),
        ({"long": {"segment_seeds": "99: 1"}}, "does not exist"),
        ({"long": {"overlap": 60}}, "expected 1 to"),
        ({"long": {"min_identity": 0.8}}, "Connect Load CLIP Vision to identity_model"),
    ],
)
def test_bad_inputs_are_a_sentence(server: Any, changes: dict[str, Any], said: str) -> None:
    assert said in server.error_of(changed(LONG, **changes))["exception_message"]


def test_a_conditioning_without_the_portrait_is_refused(server: Any) -> None:
    stock = prompt()
    stock["zero"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["video", 0]}}
    stock["text"] = {"class_type": "MagicDistillModelCaption", "inputs": {"model": ["load", 0], "caption": ""}}
    error = server.error_of(changed(stock, long={"conditioning": ["text", 0]}))
    assert "Connect both outputs of Portrait to video" in error["exception_message"]


@pytest.mark.parametrize("prefix", ["../up", "/tmp/x", "a/../../b"])
def test_nothing_is_written_outside_the_output_folder(server: Any, prefix: str) -> None:
    refused = server.refusal_of(prompt(filename_prefix=prefix))
    assert "does not stay inside" in json.dumps(refused)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
def test_lengths_that_are_impossible_are_refused(server: Any, seconds: float) -> None:
    assert "seconds" in json.dumps(server.refusal_of(prompt(seconds=seconds)))


def test_a_video_is_continued_with_its_sound(server: Any) -> None:
    source = server.directory / "input" / "before.mp4"
    clip = torch.rand(12, 40, 60, 3, generator=torch.Generator().manual_seed(4))
    tone = torch.sin(torch.arange(44100) / 20)[None, None]
    write_video(source, clip.repeat_interleave(2, 0)[:24], 12.0, audio=waveform_audio(tone, 44100))
    running = prompt(seconds=3.0, filename_prefix="long/continued")
    running["before"] = {"class_type": "LoadVideo", "inputs": {"file": "before.mp4"}}
    running["long"]["inputs"]["continue_video"] = ["before", 0]
    path = saved(server, server.run(running))
    found = frames(path)
    # Two seconds at 12 frames per second become 16 frames at 8; the last of them is cross-faded.
    assert found.shape == (16 - 1 + 24, 48, 64, 3)
    with av.open(str(path)) as video:
        assert sum(frame.samples for frame in video.decode(audio=0)) / 44100 == pytest.approx(1.0, abs=0.05)
    record = json.loads(read_tags(path)[SEGMENTS_TAG])
    assert record["segments"][0]["first_frame"] == 15
