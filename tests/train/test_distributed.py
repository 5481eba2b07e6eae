"""The error message on systems without DeepSpeed."""

import pytest

from magicdistill_core.errors import ConfigError
from train import distributed


def test_a_missing_deepspeed_names_linux_and_wsl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"DeepSpeed.*Linux.*`uv sync`.*WSL"):
        distributed.prepare_environment()
