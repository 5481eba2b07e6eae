"""The setting `auto` becomes the precision in which this machine is fast."""

import time

import pytest
import torch
from pydantic import BaseModel, ValidationError

from train.config import precision as fast_precision
from train.config.precision import FastPrecision, bf16_is_fast


class Settings(BaseModel):
    precision: FastPrecision


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_machine(monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str) -> None:
    monkeypatch.setattr(fast_precision, "bf16_is_fast", lambda device: fast)
    assert Settings(precision="auto").precision == precision
    assert Settings(precision="bf16").precision == "bf16"
    assert Settings(precision="fp32").precision == "fp32"


def test_other_values_are_refused() -> None:
    with pytest.raises(ValidationError, match="precision"):
        Settings(precision="fp16")


def test_the_answer_for_this_cpu_is_what_a_product_takes() -> None:
    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - began)
        return min(times)

    ratio = seconds(torch.bfloat16) / seconds(torch.float32)
    # Measured: 70 without instructions for bf16, at most 2 with them. The limit is far from both.
    assert bf16_is_fast(torch.device("cpu")) == (ratio < 10)
