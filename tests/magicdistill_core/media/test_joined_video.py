"""Joined files show the frames of their parts, exactly, and are valid while they grow."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from magicdistill_core.errors import VideoError
from magicdistill_core.media.audio import waveform_audio
from magicdistill_core.media.joined_video import growing_video, join_videos
from magicdistill_core.media.video import read_tags
from magicdistill_core.media.video_writing import write_video


def part(path: Path, seed: int, frames: int = 7, size: int = 32, fps: float = 24) -> Path:
    write_video(path, torch.rand(frames, size, size, 3, generator=torch.Generator().manual_seed(seed)), fps)
    return path


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("fps", [24, 23.976, 16])
def test_frames_and_times_are_those_of_the_parts(tmp_path: Path, fps: float) -> None:
    parts = [part(tmp_path / f"{seed}.mp4", seed, count, fps=fps) for seed, count in enumerate((7, 1, 12))]
    assert join_videos(parts, tmp_path / "all.mp4", {"workflow": "{}"}) == 20
    assert np.array_equal(frames(tmp_path / "all.mp4"), np.concatenate([frames(file) for file in parts]))
    assert read_tags(tmp_path / "all.mp4")["workflow"] == "{}"
    with av.open(str(tmp_path / "all.mp4")) as container:
        rate = container.streams.video[0].average_rate
        assert float(rate) == pytest.approx(fps, rel=1e-4)
        times = [frame.time for frame in container.decode(video=0)]
    assert np.allclose(np.diff(times), 1 / float(rate), atol=1e-4)
    assert times[0] == pytest.approx(0, abs=1e-6)


def test_a_growing_file_is_valid_after_every_part(tmp_path: Path) -> None:
    parts = [part(tmp_path / f"{seed}.mp4", seed) for seed in range(3)]
    expected = np.concatenate([frames(file) for file in parts])
    with growing_video(tmp_path / "growing.mp4", {"note": "n"}) as video:
        for number, file in enumerate(parts, start=1):
            video.append(file)
            # As if the process was killed now: only what is on disk counts.
            copy = tmp_path / "killed.mp4"
            copy.write_bytes((tmp_path / "growing.mp4").read_bytes())
            found = frames(copy)
            assert 7 * number - 1 <= len(found) <= 7 * number
            assert np.array_equal(found, expected[: len(found)])
            assert read_tags(copy)["note"] == "n"
    assert np.array_equal(frames(tmp_path / "growing.mp4"), expected)


def test_sound_is_cut_at_the_end(tmp_path: Path) -> None:
    sound = waveform_audio(torch.sin(torch.arange(96000) / 20)[None, None], 48000)
    join_videos([part(tmp_path / f"{seed}.mp4", seed, 12) for seed in range(2)], tmp_path / "all.mp4", {}, sound)
    with av.open(str(tmp_path / "all.mp4")) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    assert samples / 48000 == pytest.approx(1.0, abs=0.03)


def test_other_kinds_and_damage_are_refused(tmp_path: Path) -> None:
    first = part(tmp_path / "first.mp4", 0)
    out = tmp_path / "all.mp4"
    for other in (part(tmp_path / "large.mp4", 1, size=48), part(tmp_path / "fast.mp4", 1, fps=30)):
        with pytest.raises(VideoError, match=f"{other.name} .* differs from the parts before it"):
            join_videos([first, other], out, {})
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match=r"damaged\.mp4 cannot be read"):
        join_videos([first, tmp_path / "damaged.mp4"], out, {})
    with pytest.raises(VideoError, match="no parts"):
        join_videos([], out, {})
    assert not out.exists()


def test_a_full_disk_is_not_blamed_on_the_part(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    file = part(tmp_path / "part.mp4", 0, 40, size=96)

    def grow() -> None:
        with growing_video(full, {}) as video:
            for _ in range(20):
                video.append(file)

    with pytest.raises(VideoError, match="full cannot be written"):
        grow()
