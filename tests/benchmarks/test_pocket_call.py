"""The call that trains the pocket weights: its order of work, its time limit, and what it keeps."""

import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import pocket_call
from benchmarks.pocket_call import Call, first, keep, keep_logs, prepare_portraits, run, third
from magicdistill_core.pocket.files import TEACHER, VAE


def call_in(folder: Path, folders: int = 3) -> Call:
    (folder / "work").mkdir(parents=True)
    return Call(
        work=folder / "work",
        results=folder / "results",
        end=time.monotonic() + 60,
        processes=1,
        folders=folders,
        clips=10,
        vae_clips=2,
        table_clips=4,
        vae=(),
        reader=(),
        teacher=(),
        tables=(),
        probe_updates=2,
    )


@pytest.mark.parametrize("ready", [0, 1, 2, 3])
def test_portraits_are_encoded_as_soon_as_there_is_an_autoencoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: int
) -> None:
    call = call_in(tmp_path)
    done: list[str] = []

    def noted(call: Call, name: str, words: list[str], **_: object) -> None:
        number = next(word for word in words if Path(word).name.startswith("portraits-"))[-1]
        done.append(f"{name} {number}")
        if name == "render" and int(number) == ready:
            call.vae_file.touch()

    monkeypatch.setattr(pocket_call, "run", noted)
    if ready == 3:
        monkeypatch.setattr(pocket_call.time, "sleep", lambda seconds: call.vae_file.touch())
    prepare_portraits(call)
    assert [one for one in done if one.startswith("render")] == ["render 0", "render 1", "render 2"]
    assert [one for one in done if one.startswith("encode")] == ["encode 0", "encode 1", "encode 2"]
    if ready < 3:
        assert done.index("encode 0") == ready + 1
    assert call.done.exists()


def test_a_failure_of_the_portraits_ends_the_waiting(tmp_path: Path) -> None:
    call = call_in(tmp_path)
    call.failed("portraits").touch()
    with pytest.raises(RuntimeError, match=r"portraits\.log"):
        call.wait_for(call.done, "portraits")
    call.done.touch()
    call.wait_for(call.done, "portraits")


def test_a_command_is_asked_to_stop_in_time(tmp_path: Path) -> None:
    call = call_in(tmp_path)
    lines = [
        "import signal, sys, time",
        "signal.signal(15, lambda *_: sys.exit(0))",
        "print('ready', flush=True)",
        "time.sleep(60)",
    ]
    stops = "; ".join(lines)
    began = time.monotonic()
    run(call, "teacher", [sys.executable, "-c", stops], seconds=3)
    assert time.monotonic() - began < 20
    assert "ready" in (call.work / "teacher.log").read_text()


def test_a_failed_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="non-zero exit status 3"):
        run(call_in(tmp_path), "vae", [sys.executable, "-c", "import sys; sys.exit(3)"])


def test_large_files_are_kept_in_parts_that_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket_call, "_PART_BYTES", 10)
    call = call_in(tmp_path)
    for name, content in (("small.bin", b"123"), ("large.bin", bytes(range(25)))):
        (call.work / name).write_bytes(content)
        keep(call, call.work / name)
    assert (call.results / "small.bin").read_bytes() == b"123"
    parts = sorted(call.results.glob("large.bin.*"))
    assert [part.name for part in parts] == ["large.bin.0", "large.bin.1", "large.bin.2"]
    assert b"".join(part.read_bytes() for part in parts) == bytes(range(25))


def test_logs_are_packed_without_weights(tmp_path: Path) -> None:
    call = call_in(tmp_path)
    (call.work / "run").mkdir()
    for name in ("vae.log", "run/metrics.jsonl", "run/curves.png", "run/weights.safetensors"):
        (call.work / name).write_text(name)
    keep_logs(call, "first")
    with tarfile.open(call.results / "first.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["run/curves.png", "run/metrics.jsonl", "vae.log"]


def test_the_tables_keep_what_is_made_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is stopped in the middle: its records, sheets and models come back, its runs do not."""
    call = call_in(tmp_path)
    runs = call.work / "tables"
    asked: list[list[str]] = []

    def stopped(call: Call, name: str, words: list[str], **_: object) -> None:
        asked.append([str(word) for word in words])
        for file in ("cells/floor.json", "sheets/floor.jpg", "pocket_tables.json", "trainings/w2s/state.safetensors"):
            (runs / file).parent.mkdir(parents=True, exist_ok=True)
            (runs / file).write_text(file)
        (runs / "models").mkdir()
        (runs / "models/w2s-4-seed0.safetensors").write_bytes(b"weights")
        raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(pocket_call, "run", stopped)
    third(call)
    assert asked[0][asked[0].index("--portraits") :][:2] == ["--portraits", "4"]
    assert (call.results / "w2s-4-seed0.safetensors").read_bytes() == b"weights"
    with tarfile.open(call.results / "tables.tar.gz") as archive:
        assert sorted(name for name in archive.getnames() if "." in name) == [
            "cells/floor.json",
            "pocket_tables.json",
            "sheets/floor.jpg",
        ]


def test_the_shipped_autoencoder_and_reader_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = replace(call_in(tmp_path), shipped=True)
    reader = tmp_path / "shipped-reader.safetensors"
    reader.write_bytes(b"reader")
    monkeypatch.setattr(pocket_call, "READER", reader)
    started: list[str] = []
    monkeypatch.setattr(pocket_call, "_in_background", lambda call, name: started.append(name))
    first(call)
    assert started == ["portraits"]
    assert call.vae_file.read_bytes() == VAE.read_bytes()
    assert call.reader_file.read_bytes() == b"reader"
    assert call.start == TEACHER
    assert call_in(tmp_path / "other").start is None
