"""Files are opened whatever they are called, and nothing else than the file is opened."""

import os
import shutil
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from magicdistill_core.errors import VideoError
from magicdistill_core.media.audio import read_audio, waveform_audio
from magicdistill_core.media.video import read_tags, read_video
from magicdistill_core.media.video_writing import write_video

from .clips import numbers, write_clip

FRAMES = 10 * torch.arange(4, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 64, 3)
SOUND = torch.zeros(1, 44100)
NAMES = [
    "12:30.mp4",
    "-x.mp4",
    "%03d.mp4",
    "concat:a.mp4|b.mp4",
    "data:,a.mp4",
    "file:b.mp4",
    "[a] *?.mp4",
    "ü 中.mp4",
]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_name_can_be_written_and_read_by_a_relative_path(inside: Path, name: str) -> None:
    write_video(Path(name), FRAMES, 24, {"title": "a"}, crf=5, audio=waveform_audio(SOUND, 44100))
    assert [path.name for path in inside.iterdir()] == [name]
    assert numbers(read_video(name).frames) == [0, 1, 2, 3]
    assert read_tags(Path(name))["title"] == "a"
    assert read_audio(name) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_need_not_be_utf8(inside: Path) -> None:
    write_video("a.mp4", FRAMES, 24, crf=5)
    name = os.fsdecode(b"caf\xe9.mp4")
    os.rename("a.mp4", name)
    assert numbers(read_video(Path(name)).frames) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile secret.mkv\n",
        "ffconcat version 1.0\nfile 'file:secret.mkv'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mkv\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:{folder}/secret.mkv\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 33\n",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ts"])
def test_a_playlist_opens_no_other_file(inside: Path, content: str, suffix: str) -> None:
    write_clip(inside / "secret.mkv", [0.0, 0.04])
    path = inside / f"list{suffix}"
    path.write_text(content.format(folder=inside))
    with pytest.raises(VideoError, match=r"list\.\w+ cannot be read as a video"):
        read_video(path)


def test_a_series_of_pictures_is_not_taken_for_a_video(inside: Path) -> None:
    av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24").to_image().save("001.png")
    shutil.copy("001.png", "%03d.png")
    os.remove("001.png")
    assert len(list(read_video("%03d.png").frames)) == 1  # the file itself


def _replace(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("suffix", [".avi", ".mov", ".mp4", ".mkv", ".flv", ".nut"])
def test_tags_that_are_not_utf8_do_not_end_the_reading(tmp_path: Path, suffix: str) -> None:
    """Tags of the file, of its streams, and the names of chapters."""
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "TAGTAG file"
        stream = file.add_stream("flv" if suffix == ".flv" else "mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["handler_name"] = stream.metadata["title"] = "TAGTAG stream"
        if suffix in (".mkv", ".mov", ".mp4"):
            chapter = {"id": 1, "start": 0, "end": 10, "time_base": Fraction(1, 24)}
            file.set_chapters([chapter | {"metadata": {"title": "TAGTAG chapter"}}])
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts = number
            file.mux(stream.encode(frame.reformat(format="yuv420p")))
        file.mux(stream.encode(None))
    _replace(path, b"TAGTAG", b"caf\xe9 \xff")
    assert len(list(read_video(path).frames)) == 4
    assert any("caf\ufffd" in value for value in read_tags(path).values())


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".m4a", ".ogg"])
def test_sound_files_with_such_tags_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    codec = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac", ".ogg": "libopus"}[suffix]
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "TAGTAG file"
        stream = file.add_stream(codec, rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 48000
        for part in av.AudioResampler(stream.format, "mono", 48000, stream.frame_size or None).resample(frame):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    if suffix != ".ogg":  # its pages have checksums
        _replace(path, b"TAGTAG", b"caf\xe9 \xff")
    sound = read_audio(path)
    assert sound is not None
    assert sum(chunk.shape[1] for chunk in sound.chunks) / sound.rate == pytest.approx(1, abs=0.1)
    with pytest.raises(VideoError, match=r"no video stream \(only audio\)"):
        read_video(path)


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mka"
    with av.open(str(path), "w", format="matroska") as file:
        stream = file.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.disposition = av.stream.Disposition.attached_pic.value
        stream.metadata["filename"], stream.metadata["mimetype"] = "cover.jpg", "image/jpeg"
        video = file.add_stream("ffv1", rate=24)
        video.width, video.height, video.pix_fmt = 32, 32, "bgr0"
        for target, size, count in ((stream, (48, 64), 1), (video, (32, 32), 3)):
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 10 * number, np.uint8), format="rgb24")
                frame.pts = number
                file.mux(target.encode(frame.reformat(format=target.pix_fmt)))
            file.mux(target.encode(None))
    assert numbers(read_video(path).frames) == [0, 1, 2]


def test_a_codec_without_a_decoder_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", [0.0, 0.04], "mpeg4", "yuv420p", Fraction(1, 25))
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(content.replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match=r"a\.avi uses a codec .*h264"):
        read_video(tmp_path / "a.avi")


def test_a_picture_of_an_impossible_size_needs_no_memory(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.avi", [0.0, 0.04], "ffv1", "bgr0", Fraction(1, 25))
    content = bytearray((tmp_path / "a.avi").read_bytes())
    place = content.index(b"strf") + 12  # width and height of BITMAPINFOHEADER
    content[place : place + 8] = (30000).to_bytes(4, "little") * 2
    (tmp_path / "a.avi").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.avi "):
        list(read_video(tmp_path / "a.avi").frames)


@pytest.mark.parametrize("content", [None, b"", b"RIFF\0\0\0\0WEBP", b"no picture"])
def test_tags_of_unreadable_webp_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.webp").write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.webp cannot be read"):
        read_tags(tmp_path / "a.webp")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    for path, part in ((tmp_path / "folder.mp4", "not a file"), (tmp_path / ("x" * 300), "exist|opened")):
        for read in (read_video, read_tags, read_audio):
            with pytest.raises(VideoError, match=part):
                read(path)
