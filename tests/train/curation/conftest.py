"""Fixtures of this folder: the face landmarker among the real test inputs."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def landmarker(shared_data: Path) -> Path:
    """MediaPipe's face landmarker; tests skip without it or without MediaPipe."""
    pytest.importorskip("mediapipe")
    pytest.importorskip("scenedetect")
    path = shared_data / "networks" / "face_landmarker_v2_with_blendshapes.task"
    if not path.is_file():
        pytest.skip(f"the face landmarker is not there ({path})")
    return path
