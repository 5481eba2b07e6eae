"""Values that are computed ahead are those that would be computed when asked."""

import threading

import pytest
import torch

from train.data.read_ahead import ReadAhead
from train.methods.draws import Draws

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class Counted:
    """A pure function that notes for which updates, and in which thread, it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, update: int) -> int:
        self.calls.append((update, threading.current_thread() is threading.main_thread()))
        return update**2


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("updates", [[0, 1, 2, 3], [5, 11, 17], [0, 1, 2, 3, 4, 6, 7], [9, 3, 4, 5], [-2, -1, 0, 1]])
def test_every_value_is_that_of_its_update(device: torch.device, updates: list[int]) -> None:
    ahead = ReadAhead(device)
    assert [ahead.get("noise", update, Counted()) for update in updates] == [update**2 for update in updates]


def test_a_gpu_gets_the_next_values_from_another_thread() -> None:
    ahead, compute = ReadAhead(GPU), Counted()
    for update in (0, 6, 12, 18):
        ahead.get("noise", update, compute)
    assert [call for call in compute.calls if call[1]] == [(0, True), (6, True)]
    assert {update for update, main in compute.calls if not main} >= {12, 18}


def test_a_cpu_computes_nothing_ahead() -> None:
    ahead, compute = ReadAhead(CPU), Counted()
    for update in range(4):
        ahead.get("noise", update, compute)
    assert compute.calls == [(update, True) for update in range(4)]


def test_names_are_independent() -> None:
    ahead = ReadAhead(GPU)
    for update in range(4):
        assert ahead.get("a", update, lambda number: number) == update
        assert ahead.get("b", update, lambda number: -number) == -update


def test_an_error_reaches_the_update_that_needs_the_value() -> None:
    def compute(update: int) -> int:
        if update == 3:
            raise ValueError("sample 3 is damaged")
        return update

    ahead = ReadAhead(GPU)
    assert [ahead.get("latents", update, compute) for update in (1, 2)] == [1, 2]
    with pytest.raises(ValueError, match="sample 3"):
        ahead.get("latents", 3, compute)


def test_another_attempt_draws_other_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    draws, plain = Draws(0, ReadAhead(GPU)), Draws(0)
    for update in range(3):
        assert torch.equal(draws.noise("loss", update, [0, 1], (4,)), plain.noise("loss", update, [0, 1], (4,)))
    draws.attempt = plain.attempt = 1
    assert torch.equal(draws.noise("loss", 3, [0, 1], (4,)), plain.noise("loss", 3, [0, 1], (4,)))
