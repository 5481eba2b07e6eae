import io
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from magicdistill_core.errors import VideoError
from magicdistill_core.media.audio import read_audio, waveform_audio
from magicdistill_core.media.video import read_tags, read_video
from magicdistill_core.media.video_writing import (
    FORMATS,
    HEVC_10_BIT,
    MP4,
    MP4_10_BIT,
    PRORES,
    WEBM,
    WEBP,
    VideoFormat,
    frame_rate,
    write_video,
)

CONTAINERS = [format for format in FORMATS if format is not WEBP]
TAGS = {"prompt": '{"1": {"class_type": "X"}}', "workflow": '{"nodes": "%s"}' % ("w" * 100_000), "magicdistill": "ü ✓"}
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 150, 120]], dtype=torch.uint8)
every_format = pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.title)
every_container = pytest.mark.parametrize("format", CONTAINERS, ids=lambda format: format.title)


def bars(frames: int) -> torch.Tensor:
    """Return coloured bars `[frames, 48, 64, 3]` below a grey line that gets brighter with every frame."""
    clip = COLOURS.repeat_interleave(16, 0)[None, None].repeat(frames, 48, 1, 1)
    clip[:, :8] = torch.linspace(0, 255, frames).to(torch.uint8).view(-1, 1, 1, 1)
    return clip


def tone(seconds: float, rate: int = 44100, channels: int = 2) -> torch.Tensor:
    """Return a 440 Hz sine at half of the full scale, `[1, channels, T]`."""
    time = torch.arange(round(seconds * rate)) / rate
    return (0.5 * torch.sin(2 * math.pi * 440 * time)).expand(1, channels, -1)


def frames_of(path: Path) -> list[np.ndarray]:
    """Read the frames of a file of any format; PIL reads WebP."""
    if path.suffix != ".webp":
        return [frame.numpy() for frame in read_video(path).frames]
    with Image.open(path) as image:
        pictures = []
        for number in range(image.n_frames):
            image.seek(number)
            pictures.append(np.array(image.convert("RGB")))
        return pictures


@every_format
def test_colours_size_count_and_tags_come_back(tmp_path: Path, format: VideoFormat) -> None:
    assert format.available
    path = tmp_path / f"a{format.suffix}"
    audio = waveform_audio(tone(0.5), 44100)
    assert write_video(path, bars(5), 24, TAGS, 5, format, audio) == 5
    found = frames_of(path)
    assert len(found) == 5
    for frame in found:
        assert frame.shape == (48, 64, 3)
        difference = np.abs(frame[24, 8::16].astype(int) - COLOURS.numpy().astype(int))
        assert difference.max() <= (12 if format is WEBP else 4), difference
    tags = read_tags(path)
    assert {key: tags[key] for key in TAGS} == TAGS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@every_container
def test_every_format_has_its_codec_and_colour_properties(tmp_path: Path, format: VideoFormat) -> None:
    path = tmp_path / f"a{format.suffix}"
    write_video(path, bars(6), 29.97, {}, 18, format)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.pix_fmt == format.pixels
        assert float(stream.average_rate) == pytest.approx(30000 / 1001, rel=1e-4 if format is WEBM else 1e-9)
        assert stream.codec_context.colorspace == Colorspace.ITU709
        assert stream.codec_context.color_range == ColorRange.MPEG
        assert not container.streams.audio


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (24, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(15000, 1001), Fraction(15000, 1001)),
        (Fraction(1000000, 33367), Fraction(30000, 1001)),
    ],
)
def test_rates_are_stored_as_exact_fractions(fps: float | Fraction, exact: Fraction) -> None:
    assert frame_rate(fps) == exact


@pytest.mark.parametrize("format", [MP4_10_BIT, PRORES], ids=lambda format: format.title)
def test_ten_bits_keep_more_levels_than_eight(tmp_path: Path, format: VideoFormat) -> None:
    ramp = torch.linspace(0.2, 0.4, 512)[None, :, None].expand(64, -1, 3)[None]  # 51 levels of 8 bits, 205 of 10
    levels = {}
    for kind in (MP4, format):
        path = tmp_path / f"{kind.codec}{kind.pixels}{kind.suffix}"
        write_video(path, ramp, 24, crf=0, format=kind)
        (frame,) = read_video(path, deep=True).frames
        assert frame.dtype == torch.float32
        row = frame[32, :, 1]
        assert (row - ramp[0, 32, :, 1]).abs().max() < (0.002 if kind.deep else 0.006)
        levels[kind] = len(row.unique())
    assert levels[MP4] < 70
    assert levels[format] > 150


def test_frames_of_floats_are_rounded_and_bytes_kept(tmp_path: Path) -> None:
    levels = torch.arange(0, 250, 10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    write_video(tmp_path / "bytes.mp4", levels, 24, crf=0)
    floats = (levels.float() + 0.4) / 255
    floats[0] -= 1  # clamped
    write_video(tmp_path / "floats.mp4", floats, 24, crf=0)
    assert np.array_equal(frames_of(tmp_path / "bytes.mp4"), frames_of(tmp_path / "floats.mp4"))


@every_format
def test_a_higher_crf_is_a_smaller_file(tmp_path: Path, format: VideoFormat) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(4, 8, 8, 3, generator=generator).repeat_interleave(12, 1).repeat_interleave(12, 2)
    frames = (frames + 0.1 * torch.rand(frames.shape, generator=generator)).clamp(0, 1)
    sizes = []
    for crf in (0, 18, 40):
        path = tmp_path / f"{crf}{format.suffix}"
        write_video(path, frames, 24, crf=crf, format=format)
        sizes.append(path.stat().st_size)
    if format is PRORES:
        assert len(set(sizes)) == 1
    else:
        assert sizes[0] > 1.5 * sizes[1]
        assert sizes[1] > 1.5 * sizes[2]


def test_webp_without_loss_loops_and_lasts_as_long_as_the_video(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (9, 31, 45, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "a.webp", frames, 24, TAGS, 0, WEBP)
    assert np.array_equal(np.stack(frames_of(tmp_path / "a.webp")), frames.numpy())
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
    assert sum(durations) == pytest.approx(9000 / 24, abs=1)
    write_video(tmp_path / "still.webp", frames[:1], 24, TAGS, 0, WEBP)
    assert np.array_equal(frames_of(tmp_path / "still.webp")[0], frames[0].numpy())
    assert read_tags(tmp_path / "still.webp") == TAGS


@every_container
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (48000, 1), (22050, 6), (96000, 2)])
def test_sound_is_that_of_the_input_and_ends_with_the_video(
    tmp_path: Path, format: VideoFormat, rate: int, channels: int
) -> None:
    path = tmp_path / f"a{format.suffix}"
    write_video(path, bars(24), 24, TAGS, 18, format, waveform_audio(tone(3, rate, channels), rate))
    sound = read_audio(path)
    assert sound is not None
    assert sound.channels == channels
    samples = np.concatenate(list(sound.chunks), axis=1)
    assert samples.shape[1] / sound.rate == pytest.approx(1, abs=0.06)
    middle = samples[0, sound.rate // 4 : sound.rate * 3 // 4]
    loudest = np.abs(np.fft.rfft(middle)).argmax() * sound.rate / len(middle)
    assert loudest == pytest.approx(440, abs=4)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / math.sqrt(2), rel=0.1)
    assert read_tags(path)["prompt"] == TAGS["prompt"]


def test_sound_may_be_shorter_than_the_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", bars(24), 24, audio=waveform_audio(tone(0.25), 44100))
    assert len(frames_of(tmp_path / "a.mp4")) == 24
    with pytest.raises(VideoError, match="1, 2 or 6 channels"):
        waveform_audio(torch.zeros(1, 3, 100), 44100)


def test_empty_missing_and_damaged_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, bars(24), 24, audio=waveform_audio(torch.zeros(1, 2, 0), 44100))
    assert len(frames_of(path)) == 24
    write_video(path, bars(24), 24)
    assert read_audio(path) is None
    write_video(path, bars(24), 24, audio=waveform_audio(tone(1), 44100))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in places[10:20]:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    sound = read_audio(path)
    assert sound is not None
    with pytest.raises(VideoError, match=r"sound .*decoded.*damaged"):
        list(sound.chunks)


def test_a_window_of_a_file_is_read_alone(tmp_path: Path) -> None:
    levels = 10 * torch.arange(24, dtype=torch.uint8)
    frames = levels.view(-1, 1, 1, 1).expand(-1, 32, 32, 3)
    sweep = torch.linspace(0, 1, 44100 * 2)[None]
    write_video(tmp_path / "a.mov", frames, 12, format=PRORES, audio=waveform_audio(sweep, 44100))
    for source in (tmp_path / "a.mov", io.BytesIO((tmp_path / "a.mov").read_bytes())):
        window = read_video(source, start=0.5, duration=1)
        assert (window.rate, window.count) == (12, None)
        assert [round(float(frame.float().mean()) / 10) for frame in window.frames] == list(range(6, 18))
        sound = read_audio(source, start=0.5, duration=1)
        assert sound is not None
        samples = np.concatenate(list(sound.chunks), axis=1)
        assert samples.shape == (1, 44100)
        assert samples[0, [0, -1]] == pytest.approx([0.25, 0.75], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
@pytest.mark.parametrize(("picture", "sound"), [(0.0, 0.0), (2.0, 2.0), (2.0, 1.5), (2.0, 2.5)])
def test_sound_begins_with_the_first_frame_of_files_that_begin_late(
    suffix: str, picture: float, sound: float, tmp_path: Path, write_late_clip: Callable[[Path, float, float], None]
) -> None:
    path = tmp_path / f"late{suffix}"
    write_late_clip(path, picture, sound)
    video = read_video(path, 25.0)
    assert video.start == pytest.approx(picture - min(picture, sound), abs=0.03)
    white = [float(frame.float().mean()) > 128 for frame in video.frames]
    assert (white.index(True), len(white)) == (25, 50)
    audio = read_audio(path, video.start)
    assert audio is not None
    loud = np.abs(np.concatenate(list(audio.chunks), axis=1)[0]) > 0.1
    assert loud.argmax() / audio.rate == pytest.approx(1, abs=0.003)


def test_sound_of_a_window_begins_with_its_first_frame(
    tmp_path: Path, write_late_clip: Callable[[Path, float, float], None]
) -> None:
    write_late_clip(tmp_path / "late.mkv", 2.0, 2.0)
    # Between two frames: the picture begins with the later one, and so does the sound.
    video = read_video(tmp_path / "late.mkv", 25.0, start=0.545, duration=1.2)
    assert video.start == pytest.approx(0.56, abs=0.03)
    assert [float(frame.float().mean()) > 128 for frame in video.frames].index(True) == 11
    audio = read_audio(tmp_path / "late.mkv", video.start, 1.2)
    assert audio is not None
    samples = np.concatenate(list(audio.chunks), axis=1)[0]
    assert len(samples) / audio.rate == pytest.approx(1.2)
    assert (np.abs(samples) > 0.1).argmax() / audio.rate == pytest.approx(11 / 25, abs=0.003)


def test_a_changed_size_and_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"frame 1 is 64 x 32.* 32 x 32\."):
        write_video(tmp_path / "a.mp4", [torch.zeros(32, 32, 3), torch.zeros(32, 64, 3)], 24)
    with pytest.raises(VideoError, match="0 frames"):
        write_video(tmp_path / "a.webm", [], 24, format=WEBM)

    def broken() -> Iterator[torch.Tensor]:
        yield torch.zeros(32, 32, 3)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        write_video(tmp_path / "a.mp4", broken(), 24)
    assert not list(tmp_path.iterdir())


STREAM = """
import sys
from pathlib import Path
from magicdistill_core.media.audio import read_audio
from magicdistill_core.media.video import read_video
from magicdistill_core.media.video_writing import write_video
source, out = Path(sys.argv[1]), Path(sys.argv[2])
video = read_video(source)
print(write_video(out, video.frames, video.rate, crf=18, audio=read_audio(source)))
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path: Path) -> None:
    """Copying 460 frames from file to file needs no more memory than copying 60: only the encoders' fixed buffers."""
    frame = torch.linspace(0, 1, 320)[None, :, None].expand(240, -1, 3)
    root, peaks = Path(__file__).resolve().parents[3], {}
    for count in (60, 460):
        source = tmp_path / f"{count}.mp4"
        frames = (frame.roll(n, 1) for n in range(count))
        write_video(source, frames, 24, crf=30, audio=waveform_audio(tone(count / 24), 44100))
        command = [sys.executable, "-c", STREAM, str(source), str(tmp_path / "out.mp4")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
        written, peak = map(int, done.stdout.split())
        assert written == count
        peaks[count] = peak / 1024
    assert peaks[460] - peaks[60] < 30, peaks  # MiB; 400 more frames are 88 MiB, as floats four times that


@pytest.mark.skipif(not HEVC_10_BIT.available, reason="this PyAV has no x265")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_clips_shorter_than_the_encoders_delay_are_written_every_time(count: int, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
    for _ in range(10):
        write_video(tmp_path / "a.mp4", frames, 8.0, format=HEVC_10_BIT)
        assert len(list(read_video(tmp_path / "a.mp4").frames)) == count
