"""A run in bf16 on a CPU that computes it slowly says so before it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from train.config.reading import parse_config
from train.run import preflight


def test_a_run_in_bf16_on_a_cpu_without_it_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_config: Callable[..., dict], tmp_path: Path
) -> None:
    config = parse_config(tiny_config(tmp_path / "run"), "test")
    for fast, precision, told in ((False, "bf16", True), (False, "fp32", False), (True, "bf16", False)):
        caplog.clear()
        monkeypatch.setattr(preflight, "bf16_is_fast", lambda device, fast=fast: fast)
        model = config.model.model_copy(update={"precision": precision})
        preflight.check_inputs(config.model_copy(update={"model": model}), resume=False)
        assert ("model.precision=auto" in caplog.text) == told
