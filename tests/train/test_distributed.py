"""The error message on systems without DeepSpeed."""

import pytest

from magicdistill_core.errors import ConfigError
from train import distributed


def test_training_without_deepspeed_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs DeepSpeed, .*Linux.*WSL"):
        distributed.prepare_environment()
