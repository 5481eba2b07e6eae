"""The check of the reader: its numbers are those of a plain computation, and its file and tables are complete."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train.pocket.dataset import HELD_OUT_SEED
from train.pocket.measuring import check_reader as command
from train.pocket.measuring.check_reader import SPECKS, check_reader, specked
from train.pocket.measuring.reader.broken import PAINTED
from train.pocket.measuring.reader.check import detection_rates, face_rates, identity_errors, motion_errors
from train.pocket.measuring.reader.quantities import IDENTITY, MOTION
from train.pocket.measuring.reader.reading import Reader, save_reader

from .linear_vae import LinearVae
from .reader.tiny import rendered_people, untrained_network

PEOPLE = 8


def no_progress(title: str) -> AbstractContextManager[Callable[[int, int], None]]:
    return nullcontext(lambda done, total: None)


def test_errors_are_those_of_a_plain_computation() -> None:
    people = rendered_people(0, 4)
    reader = Reader(untrained_network())
    readings = reader.read(people.clips)
    exact = replace(readings, **dict(zip(MOTION, people.motion.unbind(-1), strict=True)))
    for error in motion_errors(exact, people).values():
        assert error.absolute.mean == 0
        assert error.explained is not None
        assert error.explained.mean == 1
    off = replace(exact, yaw=exact.yaw + 0.1, mouth=people.motion[..., MOTION.index("mouth")].mean().expand(4, 9))
    errors = motion_errors(off, people)
    yaw = people.motion[..., 0]
    assert errors["yaw"].absolute.mean == pytest.approx(0.1, rel=1e-5)
    explained = {name: error.explained.mean for name, error in errors.items() if error.explained is not None}
    assert explained["yaw"] == pytest.approx(float(1 - 0.01 / yaw.var(correction=0)), rel=1e-4)
    assert explained["mouth"] == pytest.approx(0, abs=1e-5)
    attributes = people.identity[:, None].expand(4, 9, len(IDENTITY)).clone()
    attributes[..., 0] += 0.25
    found = identity_errors(attributes, people)
    assert found[IDENTITY[0]].absolute.mean == pytest.approx(0.25, rel=1e-5)
    assert found[IDENTITY[1]].absolute.mean == pytest.approx(0, abs=1e-6)
    one = replace(people, identity=people.identity[:1].expand(4, -1))
    # Nothing to explain: all people are the same.
    assert identity_errors(attributes, one)[IDENTITY[0]].explained is None


def test_face_rates_count_late_frames() -> None:
    people = rendered_people(0, 3)
    clips = Reader(untrained_network()).read(people.clips)
    identity = torch.arange(3.0)[:, None, None].expand(3, 9, 4)
    clips = replace(clips, whole=torch.ones(3, 9), identity=5 * identity)
    others = replace(clips, whole=torch.tensor([[1.0] * 9, [1.0] * 9, [1.0] * 6 + [0.2, 0.2, 0.9]]))
    rates = face_rates(clips, others)
    assert rates["false alarms"].mean == pytest.approx(2 / 9)
    assert rates["same person"].mean == 1
    assert rates["other person"].mean == 0


def test_a_reader_that_calls_all_faces_broken_detects_everything() -> None:
    network = untrained_network()
    network.whole_shift.fill_(-100.0)
    rates = detection_rates(Reader(network), LinearVae(), 2)
    assert set(rates) == {*PAINTED, "painted before the VAE", "broken latents"}
    for found in rates.values():
        assert found.rate is None or found.rate.mean == 1
        assert (found.rate is None) == (found.clips < 2)
    assert rates["missing eye"].frames > 0
    network.whole_shift.fill_(100.0)
    for found in detection_rates(Reader(network), LinearVae(), 2).values():
        assert found.rate is None or found.rate.mean == 0


def test_specks_are_on_every_frame_but_the_first_and_move() -> None:
    clips = rendered_people(HELD_OUT_SEED, 2).others
    made = specked(clips, 8)
    assert torch.equal(made[:, 0], clips[:, 0])
    changed = (made != clips).any(dim=2)
    assert changed[:, 1:].flatten(2).any(dim=2).all()
    assert not torch.equal(changed[:, 1], changed[:, 2])


@pytest.mark.slow
def test_the_command_writes_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taehv_file: Path) -> None:
    monkeypatch.setattr(command, "load_vae", lambda path, device: LinearVae())
    save_reader(untrained_network(), tmp_path / "reader.safetensors")
    out = tmp_path / "check.json"
    text = check_reader(tmp_path / "reader.safetensors", taehv_file, PEOPLE, out, no_progress)
    record = json.loads(out.read_text())
    assert record["people"] == PEOPLE
    assert set(record["errors"]) == {*MOTION, *IDENTITY}
    assert set(record["faces"]) == {"false alarms", "same person", "other person"}
    assert set(record["two_sample"]) >= {"data", *(f"{count} specks per frame" for count in SPECKS)}
    yaw = record["errors"]["yaw"]["absolute"]
    assert yaw["low"] <= yaw["mean"] <= yaw["high"]
    for name in ("yaw", "hair red", "false alarms", "missing eye", "broken latents", "16 specks per frame"):
        assert f"| {name} |" in text
