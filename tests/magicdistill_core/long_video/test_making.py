"""A long video is what one run makes, however often it was stopped; what is on disk is used, and only that."""

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import CheckpointError, VideoError
from magicdistill_core.long_video.drift import Limits
from magicdistill_core.long_video.making import (
    SEGMENTS_TAG,
    LongSettings,
    LongVideo,
    make_long_video,
    seed_of,
    unfinished_file,
)
from magicdistill_core.long_video.plan import Plan, plan_video
from magicdistill_core.media.audio import waveform_audio
from magicdistill_core.media.video import read_tags

SIDE = 32
# Gray, because files store colours at half the resolution.
TILES = torch.rand(4, 4, 1, generator=torch.Generator().manual_seed(3)).expand(4, 4, 3)
PORTRAIT = TILES.repeat_interleave(8, 0).repeat_interleave(8, 1)
SETTINGS = LongSettings({"model": "a"}, Fraction(24), seed=5, match_colours=False)


class Scroller:
    """A model whose segments scroll the picture from which they start, at a speed that their seed determines."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made: list[tuple[int, int]] = []
        self._fail_at = fail_at

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        if number == self._fail_at:
            raise KeyboardInterrupt
        self.made.append((number, seed))
        return torch.cat([start[0].reshape(-1), torch.tensor([float(1 + seed % 3)])])

    def decode(self, latents: Tensor) -> Tensor:
        picture, speed = latents[:-1].view(SIDE, SIDE, 3), int(latents[-1])
        return torch.stack([picture.roll(speed * time, dims=1) for time in range(9)])


def make(
    folder: Path, model: Scroller, settings: LongSettings = SETTINGS, seconds: float = 30 / 24, **options: Any
) -> LongVideo:
    plan: Plan = plan_video(seconds, 24, 9)
    return make_long_video(plan, settings, model, PORTRAIT, folder / "parts", folder / "long.mp4", **options)


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two videos have the same frames. On a busy machine, x264 does not encode equal frames to equal bytes."""
    return first.shape == second.shape and np.abs(first.astype(float) - second).mean() < 1.5


def test_segments_continue_each_other(tmp_path: Path) -> None:
    model = Scroller()
    made = make(tmp_path, model, replace(SETTINGS, crf=0))
    video = frames(made.path)
    assert len(video) == made.frames == 30
    # Frame by frame the picture has scrolled further, by the speed of its segment.
    expected, shift = [], 0
    for number in range(4):
        speed = 1 + seed_of(SETTINGS, number, 0) % 3
        expected += [shift + speed * time for time in range(8)]
        shift += 8 * speed
    for time, moved in enumerate(expected[:30]):
        wanted = (PORTRAIT.roll(moved, dims=1) * 255).round().numpy()
        assert np.abs(video[time].astype(float) - wanted).mean() < 1.5, time
    assert [entry["seed"] for entry in made.segments] == [seed for _, seed in model.made]
    assert len({seed for _, seed in model.made}) == 4
    assert model.made[0][1] == 5


def test_a_stopped_run_goes_on_and_makes_the_same_video(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", Scroller())
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "stopped", Scroller(fail_at=2))
    begun = unfinished_file(tmp_path / "stopped" / "long.mp4")
    assert len(frames(begun)) == 16
    assert not (tmp_path / "stopped" / "long.mp4").exists()
    model = Scroller()
    made = make(tmp_path / "stopped", model)
    assert [number for number, _ in model.made] == [2, 3]
    assert [entry["made"] for entry in made.segments] == [False, False, True, True]
    assert not begun.exists()
    assert same(frames(made.path), frames(whole.path))


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, []),
        ({"seeds": {2: 77}}, [2, 3]),
        ({"seed": 6}, [0, 1, 2, 3]),
        ({"run": {"model": "b"}}, [0, 1, 2, 3]),
        ({"match_colours": True}, [0, 1, 2, 3]),
        ({"prompts": ("x", "x", "x", "y")}, [0, 1, 2, 3]),
        ({"crf": 30}, []),
        ({"tags": {"note": "n"}}, []),
    ],
)
def test_only_what_a_change_concerns_is_sampled_again(tmp_path: Path, change: dict[str, Any], again: list[int]) -> None:
    make(tmp_path, Scroller())
    model = Scroller()
    make(tmp_path, model, replace(SETTINGS, **change))
    assert [number for number, _ in model.made] == again
    # The first version is still there.
    model = Scroller()
    make(tmp_path, model)
    assert model.made == []


def test_one_prompt_more_keeps_the_segments_before_it(tmp_path: Path) -> None:
    make(tmp_path, Scroller(), replace(SETTINGS, prompts=("x", "x", "x", "x")))
    model = Scroller()
    make(tmp_path, model, replace(SETTINGS, prompts=("x", "x", "x", "y")))
    assert [number for number, _ in model.made] == [3]


def test_a_longer_video_keeps_its_segments(tmp_path: Path) -> None:
    make(tmp_path, Scroller())
    model = Scroller()
    made = make(tmp_path, model, seconds=45 / 24)
    assert [number for number, _ in model.made] == [4, 5]
    whole = make(tmp_path / "other", Scroller(), seconds=45 / 24)
    assert same(frames(made.path), frames(whole.path))


@pytest.mark.parametrize("suffix", [".safetensors", ".mp4", ".json"])
@pytest.mark.parametrize("damage", ["deleted", "changed"])
def test_a_file_that_is_not_what_it_was_is_made_again(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = frames(make(tmp_path, Scroller()).path)
    file = next((tmp_path / "parts").glob(f"0002-*{suffix}"))
    if damage == "deleted":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 0xFF
        file.write_bytes(data)
    model, said = Scroller(), list[str]()
    made = make(tmp_path, model, said=said.append)
    # An mp4 file is made from its latents. The segments after the second one are the same again.
    assert [number for number, _ in model.made] == ([] if suffix == ".mp4" else [1])
    assert same(frames(made.path), whole)
    told = [note for note in made.notes if note.startswith("Segment 2 is made again")]
    assert len(told) == (0 if suffix == ".mp4" or (suffix, damage) == (".json", "deleted") else 1)
    assert set(made.notes) <= set(said)


def test_a_segment_that_drifts_is_made_again_at_most_k_times(tmp_path: Path) -> None:
    class Fading(Scroller):
        """Only the second attempt at segment 1 keeps its brightness; segment 2 always fades."""

        def decode(self, latents: Tensor) -> Tensor:
            number = self.made[-1][0]
            attempt = sum(1 for made, _ in self.made if made == number)
            fades = number == 2 or (number == 1 and attempt == 1)
            dark = 1 - 0.02 * attempt * torch.linspace(0, 1, 9).view(-1, 1, 1, 1) * fades
            return super().decode(latents) * dark

    model = Fading()
    settings = replace(SETTINGS, limits=Limits(colour=1.5), retries=2)
    made = make(tmp_path, model, settings)
    assert [number for number, _ in model.made] == [0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [len(entry["attempts"]) for entry in made.segments] == [1, 2, 3, 3]
    # The best of three is kept, which here is the first. The last segment begins as dark as that ended.
    assert made.segments[2]["seed"] == made.segments[2]["attempts"][0]["seed"]
    assert made.segments[1]["seed"] == made.segments[1]["attempts"][1]["seed"]
    assert len({attempt["seed"] for attempt in made.segments[2]["attempts"]}) == 3


class Darkening(Scroller):
    """A model whose attempts darken: the first of each segment by 12 levels, the second by 7, later ones by 3."""

    def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
        attempt = min(2, next(tries for tries in range(9) if seed_of(SETTINGS, number, tries) == seed))
        return torch.cat([super().sample(start, number, seed), torch.tensor([float(attempt)])])

    def decode(self, latents: Tensor) -> Tensor:
        by = [0.024, 0.014, 0.006][int(latents[-1])]
        # From the first frame on, so that the next segment does not begin darker than this one.
        return (super().decode(latents[:-1]) * (1 - by * 2 * torch.arange(9).gt(0).view(-1, 1, 1, 1))).clamp(0, 1)


def attempts_of(made: LongVideo) -> list[list[int]]:
    return [[attempt["seed"] for attempt in entry["attempts"]] for entry in made.segments]


# Of 128 levels on average, an attempt loses 6, 3.5 or 1.5; later segments begin from a darker picture.
@pytest.mark.parametrize("first", [Limits(), Limits(colour=5), Limits(colour=2), Limits(colour=0.1)])
@pytest.mark.parametrize("second", [Limits(), Limits(colour=5), Limits(colour=2), Limits(colour=0.1)])
def test_other_limits_make_what_they_would_have_made_at_once(tmp_path: Path, first: Limits, second: Limits) -> None:
    settings = replace(SETTINGS, retries=3)
    make(tmp_path / "both", Darkening(), replace(settings, limits=first), seconds=14 / 24)
    changed, fresh = Darkening(), Darkening()
    after = make(tmp_path / "both", changed, replace(settings, limits=second), seconds=14 / 24)
    alone = make(tmp_path / "alone", fresh, replace(settings, limits=second), seconds=14 / 24)
    assert [entry["seed"] for entry in after.segments] == [entry["seed"] for entry in alone.segments]
    assert attempts_of(after) == attempts_of(alone)
    assert same(frames(after.path), frames(alone.path))
    if first == second:
        assert changed.made == []


def test_limits_that_a_segment_keeps_do_not_make_it_again(tmp_path: Path) -> None:
    settings = replace(SETTINGS, retries=2)
    make(tmp_path, Scroller(), settings)
    model = Scroller()
    made = make(tmp_path, model, replace(settings, limits=Limits(colour=200), retries=5))
    assert model.made == []
    assert not any(entry["made"] for entry in made.segments)


def test_a_segment_is_judged_before_its_colours_are_corrected(tmp_path: Path) -> None:
    class Reddening(Scroller):
        def decode(self, latents: Tensor) -> Tensor:
            red = torch.linspace(0, 0.1, 9).view(-1, 1, 1, 1) * torch.tensor([1.0, 0, 0])
            return super().decode(latents) * 0.5 + red

    settings = replace(SETTINGS, match_colours=True, limits=Limits(colour=5), retries=1)
    made = make(tmp_path, Reddening(), settings)
    assert all(len(entry["attempts"]) == 2 and entry["drift"]["colour"] > 5 for entry in made.segments)


def test_a_full_disk_is_a_sentence_wherever_it_strikes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from magicdistill_core.long_video import store

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_text", full)
    with pytest.raises(VideoError, match=r"Segment 1 cannot be kept: .*No space left"):
        make(tmp_path, Scroller())


def test_numbers_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    class Broken(Scroller):
        def sample(self, start: Tensor, number: int, seed: int) -> Tensor:
            return super().sample(start, number, seed) * (float("nan") if number == 1 else 1)

    with pytest.raises(VideoError, match="latents of segment 2 contain NaN"):
        make(tmp_path, Broken())
    model = Scroller()
    make(tmp_path, model)
    assert [number for number, _ in model.made] == [1, 2, 3]


def test_a_full_disk_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from magicdistill_core.long_video import store

    write, count = store.write_safetensors, 0

    def full(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise CheckpointError("latents cannot be written (No space left on device).")
        write(*arguments)

    monkeypatch.setattr(store, "write_safetensors", full)
    with pytest.raises(VideoError, match=r"Segment 3 cannot be kept: .*No space left.* 2 segments before it"):
        make(tmp_path, Scroller())
    monkeypatch.setattr(store, "write_safetensors", write)
    model = Scroller()
    make(tmp_path, model)
    assert [number for number, _ in model.made] == [2, 3]


def test_a_file_without_tags_has_no_record_of_the_segments(tmp_path: Path) -> None:
    """The record repeats prompts and seeds, which ComfyUI's option `--disable-metadata` keeps out of files."""
    empty = set(read_tags(make(tmp_path, Scroller(), replace(SETTINGS, tags={})).path)) - {SEGMENTS_TAG}
    assert set(read_tags(make(tmp_path, Scroller(), replace(SETTINGS, tags=None)).path)) == empty


def test_the_file_has_tags_and_sound(tmp_path: Path) -> None:
    sound = waveform_audio(torch.sin(torch.arange(48000) / 20)[None, None], 48000)
    made = make(tmp_path, Scroller(), replace(SETTINGS, tags={"workflow": "{}"}), audio=sound)
    tags = read_tags(made.path)
    assert tags["workflow"] == "{}"
    assert json.loads(tags[SEGMENTS_TAG]) == json.loads(json.dumps(made.record()))
    with av.open(str(made.path)) as container:
        audio = container.streams.audio[0]
        assert audio.duration is not None
        assert audio.time_base is not None
        assert float(audio.duration * audio.time_base) == pytest.approx(1.0, abs=0.03)


def test_seeds_differ_by_segment_and_attempt() -> None:
    settings = replace(SETTINGS, seeds={1: 9})
    seeds = [seed_of(settings, number, attempt) for number in range(4) for attempt in range(3)]
    assert len(set(seeds)) == 12
    assert seed_of(settings, 1, 0) == 9
    assert all(0 <= seed < 2**64 for seed in seeds)
