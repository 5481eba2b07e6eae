"""Face measures on real clips, and on copies that were damaged."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magicdistill_core.errors import MagicDistillError
from magicdistill_core.media.video import read_video
from train.eval.folders import Item
from train.eval.frames import VideoFacts
from train.eval.measures.base import NotScoredError
from train.eval.measures.face import FaceMotion, Identity
from train.eval.networks.landmarks import Face, Landmarker
from train.eval.scores import Scores

FPS = 25.0


@pytest.fixture(scope="module")
def landmarker(shared_data: Path) -> Iterator[Landmarker]:
    pytest.importorskip("mediapipe")
    landmarker = Landmarker(shared_data / "networks" / "face_landmarker_v2_with_blendshapes.task")
    yield landmarker
    landmarker.close()


def frames_of(path: Path, count: int, step: int = 1) -> Tensor:
    frames = [frame for number, frame in zip(range(count), read_video(path).frames, strict=False) if number % step == 0]
    return torch.stack(frames)


def facts(frames: Tensor, fps: float = FPS) -> VideoFacts:
    return VideoFacts(frames.shape[2], frames.shape[1], fps, "h264", None)


def feed(accumulator: FaceMotion | Identity, frames: Tensor) -> Scores:
    for group in frames.split(7):
        accumulator.add(group)
    return accumulator.finish()


@pytest.fixture(scope="module")
def man(shared_data: Path, landmarker: Landmarker) -> Scores:
    """A man smiles, looks to the side, shuts his eyes at frame 66 and opens them again."""
    frames = frames_of(shared_data / "clips" / "liveportrait_d0.mp4", 78)
    return feed(FaceMotion(landmarker, facts(frames)), frames)


@pytest.fixture(scope="module")
def actor(shared_data: Path, landmarker: Landmarker) -> Scores:
    """A man speaks and turns his head."""
    frames = frames_of(shared_data / "talk" / "talk_11.mp4", 78)
    return feed(FaceMotion(landmarker, facts(frames, 23.976)), frames)


def test_a_blink_is_found_where_it_is(man: Scores) -> None:
    assert man.values["blinks"] == pytest.approx(60 * FPS / 78)  # one
    assert man.values["blink_completeness"] > 0.85
    eyes = torch.tensor(man.curves["eyes"])
    assert 64 <= int(eyes.argmin()) <= 68
    assert man.values["face_present"] == 1


def test_a_person_who_speaks_and_turns_is_measured_doing_so(man: Scores, actor: Scores) -> None:
    assert actor.values["mouth_per_second"] > 2 > man.values["mouth_per_second"]
    assert actor.values["mouth_speech"] > 0.4 > 0.1 > man.values["mouth_speech"]
    assert actor.values["head_yaw"] > 15 > 3 > man.values["head_yaw"]


def test_frames_without_a_face_are_counted(shared_data: Path, landmarker: Landmarker) -> None:
    frames = frames_of(shared_data / "clips" / "liveportrait_d0.mp4", 20)
    frames[5:10] = 128
    scores = feed(FaceMotion(landmarker, facts(frames)), frames)
    assert scores.values["face_present"] == 0.75
    assert "the first one is frame 5" in scores.notes[0]


def test_a_video_without_any_face_is_not_scored(landmarker: Landmarker) -> None:
    frames = torch.full((4, 64, 64, 3), 90, dtype=torch.uint8)
    for accumulator in (
        FaceMotion(landmarker, facts(frames)),
        Identity(landmarker, lambda _frame, _face: torch.zeros(128), Item("a", Path("a")), facts(frames)),
    ):
        with pytest.raises(NotScoredError, match="no face"):
            feed(accumulator, frames)


def describe(frame: Tensor, face: Face) -> Tensor:
    """The colours of the face and its surroundings, as a stand-in for dlib's network."""
    return torch.cat([frame.float().mean((0, 1)) / 255, torch.zeros(125)])


def test_another_person_half_way_is_found_with_its_worst_moment(shared_data: Path, landmarker: Landmarker) -> None:
    first = frames_of(shared_data / "clips" / "liveportrait_d0.mp4", 24)
    second = frames_of(shared_data / "clips" / "liveportrait_d3.mp4", 24)
    video = torch.cat([first, second])
    far = float((describe(first[0], None) - describe(second[0], None)).norm())  # type: ignore[arg-type]
    scale = 0.9 / far
    identity = Identity(landmarker, lambda *pair: scale * describe(*pair), Item("a", Path("a")), facts(video, 8.0))
    scores = feed(identity, video)
    curve = scores.curves["identity_distance"]
    assert len(curve) == 12  # two a second
    assert max(curve[:6]) < 0.2
    assert min(curve[6:]) > 0.6
    assert scores.values["identity_lost"] == 0.5
    assert scores.pictures["identity_worst"].shape == (256, 256, 3)
    assert "another person" in scores.notes[0]


def test_dlib_tells_two_people_apart(shared_data: Path, landmarker: Landmarker) -> None:
    pytest.importorskip("dlib")
    from train.eval.networks.dlib_face import SAME_PERSON, FaceDescriptor

    weights = next(shared_data.rglob("dlib_face_recognition_resnet_model_v1.dat"), None)
    if weights is None:
        pytest.skip("dlib's weights are not in the folder of real inputs")
    network = FaceDescriptor(weights)
    pairs = [frames_of(shared_data / "clips" / f"liveportrait_{name}.mp4", 41, 40) for name in ("d0", "d3")]
    (a, b), (c, _) = (
        [network(frame, face) for frame in pair if (face := landmarker(frame)) is not None] for pair in pairs
    )
    assert float((a - b).norm()) < SAME_PERSON < float((a - c).norm())


def test_an_unreadable_start_image_is_named(tmp_path: Path, landmarker: Landmarker) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"no image")
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    with pytest.raises(MagicDistillError, match="cannot be read as an image"):
        Identity(landmarker, describe, Item("a", Path("a"), image), facts(frames))
