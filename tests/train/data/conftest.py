"""Fixtures of this folder: folders of small diffusers pipelines."""

from pathlib import Path

import pytest

from .pipelines import write_hunyuan_i2v, write_hunyuan_video, write_wan


@pytest.fixture(scope="session")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunyuanVideo pipeline."""
    return write_hunyuan_video(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture(scope="session")
def image_to_video(hunyuan_video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HunyuanVideo-I2V pipeline (concat) with the language model of `hunyuan_video`."""
    return write_hunyuan_i2v(tmp_path_factory.mktemp("image_to_video"), hunyuan_video)


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan pipeline."""
    return write_wan(tmp_path_factory.mktemp("wan"))
