"""The weights that a checkpoint collects for its model files, and when a checkpoint is due."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from train.distributed import prepare_environment
from train.run import state as run_state

prepare_environment()

from train.engines.engine import collect_state  # noqa: E402 - DeepSpeed reads the environment when it is imported
from train.networks.roles import is_in_branch  # noqa: E402


class Untouchable(nn.Parameter):
    """A weight that nobody may read."""

    def detach(self) -> torch.Tensor:
        raise AssertionError("a frozen weight was collected")


def test_a_branch_is_collected_without_its_base() -> None:
    layer = nn.Module()
    layer.base = Untouchable(torch.zeros(2, 2))
    layer.lora_A = nn.ModuleDict({name: nn.Linear(2, 1, bias=False) for name in ("generator", "fake")})
    layer.lora_B = nn.ModuleDict({name: nn.Linear(1, 2, bias=False) for name in ("generator", "fake")})
    found = collect_state(nn.ModuleDict({"to_q": layer}), partial(is_in_branch, name="fake"))
    assert list(found) == ["to_q.lora_A.fake.weight", "to_q.lora_B.fake.weight"]
    own = layer.lora_A["fake"].weight
    assert torch.equal(found["to_q.lora_A.fake.weight"], own)
    assert found["to_q.lora_A.fake.weight"].data_ptr() != own.data_ptr()


@pytest.mark.parametrize(
    ("step", "minutes", "passed", "main", "due"),
    [
        (7, 60.0, 3599, None, False),
        (7, 60.0, 3600, None, True),
        (7, 0.0, 10**6, None, False),
        (50, 60.0, 0, None, True),
        (90, 60.0, 0, None, True),
        # The main process's clock decides, not the clock of this process.
        (7, 60.0, 3600, False, False),
        (7, 60.0, 0, True, True),
    ],
)
def test_a_checkpoint_is_due_by_updates_or_by_the_main_clock(
    step: int, minutes: float, passed: float, main: bool | None, due: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_all(value: Any) -> list[Any]:
        return [value if main is None else main, value]

    monkeypatch.setattr(run_state, "from_all", from_all)
    monkeypatch.setattr(run_state, "time", SimpleNamespace(monotonic=lambda: 100.0 + passed))
    checkpoint = SimpleNamespace(every=50, minutes=minutes)
    config = SimpleNamespace(checkpoint=checkpoint, updates=90)
    state = SimpleNamespace(config=config, updates=step, warming=False, _saved_at=100.0)
    assert run_state.RunState.due(state) is due  # type: ignore[arg-type]
