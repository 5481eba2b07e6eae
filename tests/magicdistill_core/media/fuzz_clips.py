"""Mutated clips for the reader: `python -m tests.magicdistill_core.media.fuzz_clips NUMBERS`, such as `7,8,100-199`.

Mutation `n` is always the same. Each one is read in every way that the project reads files. The program prints the
number of each mutation before it reads it, so its caller knows where it crashed, and a line of JSON for each finding.
"""

import contextlib
import io
import json
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
import torch

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.media.audio import read_audio
from magicdistill_core.media.video import read_tags, read_video
from train.data.windows import WindowGeometry, windows

FRAMES, FPS, WIDTH, HEIGHT = 48, 24, 64, 48
GEOMETRY = WindowGeometry(frames=17, height=32, width=32, fps=24.0, stride=17)
SECONDS = 60  # for one way to read a clip; a damaged size of 100 megapixels takes 12
MEMORY = 12 << 30
# No clip has so many frames after resampling, unless its times say so: 90 minutes.
MOST_FRAMES = 130_000

# suffix: container, video codec, pixel format, audio codec, sample rate
KINDS = {
    ".mp4": ("mp4", "libx264", "yuv420p", "aac", 48000),
    ".mov": ("mov", "prores_ks", "yuv422p10le", "pcm_s16le", 48000),
    ".mkv": ("matroska", "libx264", "yuv420p", "aac", 48000),
    ".webm": ("webm", "libvpx-vp9", "yuv420p", "libopus", 48000),
    ".avi": ("avi", "mpeg4", "yuv420p", "mp2", 48000),
    ".ts": ("mpegts", "libx264", "yuv420p", "aac", 48000),
    ".mpg": ("mpeg", "mpeg2video", "yuv420p", "mp2", 48000),
    ".gif": ("gif", "gif", "rgb8", None, 0),
    ".flv": ("flv", "flv", "yuv420p", None, 0),
    ".wmv": ("asf", "wmv2", "yuv420p", None, 0),
}
# The names of fields that hold times, sizes, places and shapes.
MARKS = (
    *(
        b"stts",
        b"ctts",
        b"stsz",
        b"stsc",
        b"stco",
        b"elst",
        b"mdhd",
        b"mvhd",
        b"tkhd",
        b"stsd",
        b"avcC",
        b"hdlr",
        b"trun",
    ),
    *(b"\x00\x00\x01\xe0", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x47\x41\x00", b"\x47\x01\x00"),
    *(b"\x2a\xd7\xb1", b"\x1f\x43\xb6\x75", b"\x16\x54\xae\x6b", b"\x44\x89", b"\x23\xe3\x83", b"\xb0\x82", b"\xe0"),
    *(b"avih", b"strh", b"strf", b"idx1", b"movi", b"00dc", b"\x21\xf9\x04", b"NETSCAPE", b"onMetaData", b"FLV"),
)
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\1\0\0\0")


def clip(suffix: str) -> bytes:
    """Return a clip of 48 different frames, with sound if the format has it."""
    container, codec, pixels, sound, rate = KINDS[suffix]
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        video = file.add_stream(codec, rate=FPS, options={"g": "12"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pixels
        audio = file.add_stream(sound, rate=rate, layout="mono") if sound else None
        for number in range(FRAMES):
            picture = np.full((HEIGHT, WIDTH, 3), 40 + 4 * number, np.uint8)
            picture[:, number : number + 12] = (250, 20, 20)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(video.encode(frame.reformat(format=pixels)))
        file.mux(video.encode(None))
        if audio is not None:
            wave = np.sin(np.arange(2 * rate) / 10)[None].astype(np.float32)
            for first in range(0, 2 * rate, 1024):
                chunk = av.AudioFrame.from_ndarray(wave[:, first : first + 1024], format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = rate, first, Fraction(1, rate)
                file.mux(audio.encode(chunk))
            file.mux(audio.encode(None))
    return out.getvalue()


def flip_bytes(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        content[draw.randrange(len(content))] = draw.randrange(256)


def truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(1, len(content)) :]


def swap_blocks(content: bytearray, draw: random.Random) -> None:
    size = draw.choice((16, 188, 512, 2048))
    a, b = sorted(draw.randrange(max(1, len(content) - size)) for _ in range(2))
    first, second = content[a : a + size], content[b : b + size]
    content[b : b + size], content[a : a + size] = first, second


def insert_zeros(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    content[place:place] = bytes(draw.choice((1, 4, 188, 4096)))


def delete_block(content: bytearray, draw: random.Random) -> None:
    place = draw.randrange(len(content))
    del content[place : place + draw.choice((1, 4, 188, 1024))]


def repeat_all(content: bytearray, draw: random.Random) -> None:
    content.extend(content[draw.choice((0, 0, len(content) // 2)) :])


def hit_head(content: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 2, 4))):
        content[draw.randrange(min(400, len(content)))] = draw.randrange(256)


def hit_mark(content: bytearray, draw: random.Random) -> None:
    present = [mark for mark in MARKS if mark in content]
    if not present:
        return flip_bytes(content, draw)
    mark = draw.choice(present)
    places = [found.end() for found in re.finditer(re.escape(mark), content)]
    place = draw.choice(places) + draw.randrange(28)
    if draw.random() < 0.5:
        content[place : place + 4] = draw.choice(EXTREMES)
    else:
        content[place : place + 1] = bytes([draw.randrange(256)])
    return None


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(flip_bytes, truncate, swap_blocks, insert_zeros, delete_block, repeat_all, hit_head),
    *(hit_mark, hit_mark, hit_mark, hit_mark),
)


def mutated(number: int, clips: dict[str, bytes]) -> tuple[str, str, bytes]:
    """Return suffix, name and contents of mutation `number`."""
    draw = random.Random(number)
    suffix = draw.choice(list(KINDS))
    content = bytearray(clips[suffix])
    chosen = [draw.choice(MUTATIONS) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    for mutate in chosen:
        if content:
            mutate(content, draw)
    return suffix, "+".join(mutate.__name__ for mutate in chosen), bytes(content)


def repeated_windows(path: Path) -> int:
    """Read a clip as `prepare` does; return the number of windows in which the reader repeats one frame of the file."""
    found = 0
    for _, window in islice(windows(path, GEOMETRY), 1000):
        assert window.shape == (17, 32, 32, 3)
        assert window.dtype == torch.uint8
        found += bool((window[1:] == window[:1]).all() and not is_still(path))
    return found


def is_still(path: Path) -> bool:
    """Return whether FFmpeg itself decodes the same picture more than once: the damaged data say so."""
    pictures: list[bytes] = []
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for frame in container.decode(video=0):
            pictures.append(frame.to_ndarray(format="rgb24").tobytes())
    return any(a == b for a, b in pairwise(pictures))


def read_everything(path: Path, draw: random.Random) -> list[str]:
    """Read a file in every way; return what went wrong."""
    ways: dict[str, Callable[[], object]] = {
        "windows": lambda: repeated_windows(path),
        "frames": lambda: sum(1 for _ in islice(read_video(path).frames, MOST_FRAMES)),
        "rate": lambda: sum(1 for _ in islice(read_video(path, 24.0, deep=True).frames, MOST_FRAMES)),
        "part": lambda: sum(1 for _ in read_video(path, 24.0, start=draw.random(), duration=0.5).frames),
        "tags": lambda: read_tags(path),
        "sound": lambda: samples(path),
    }
    wrong = []
    for way, read in ways.items():
        signal.alarm(SECONDS)  # its signal ends this process
        try:
            result = read()
        except MagicDistillError as error:
            if "\n" in str(error):
                wrong.append(f"{way}: the message has several lines: {error}")
        except Exception:  # the purpose of this program is to find these
            wrong.append(f"{way}: {traceback.format_exc()}")
        else:
            if way == "windows" and result:
                wrong.append(f"{result} windows repeat one picture")
            if way in ("frames", "rate") and result == MOST_FRAMES:
                wrong.append(f"{way}: the clip does not end")
    signal.alarm(0)
    return wrong


def samples(path: Path) -> int:
    """Return the number of samples of the sound."""
    sound = read_audio(path)
    return 0 if sound is None else sum(chunk.shape[1] for chunk in islice(sound.chunks, MOST_FRAMES))


def say(line: str) -> None:
    """Tell the caller at once, before a crash can lose the line."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(numbers: list[int]) -> None:
    """Read mutations."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    av.logging.set_level(None)
    clips = {suffix: clip(suffix) for suffix in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            say(str(number))
            suffix, name, content = mutated(number, clips)
            path = Path(folder) / f"clip{suffix}"
            path.write_bytes(content)
            for wrong in read_everything(path, random.Random(number)):
                say(json.dumps({"mutation": number, "kind": f"{suffix} {name}", "wrong": wrong}))


if __name__ == "__main__":
    ends = [[int(end) for end in part.split("-")] for part in sys.argv[1].split(",")]
    main([number for part in ends for number in range(part[0], part[-1] + 1)])
