"""Bytes that code holds, counted without data: against plain arithmetic, and against PyTorch's own tracker on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.checkpoint import checkpoint

from train.memory.bytes_held import META, BytesHeld, fused_attention


def test_freed_tensors_and_views_do_not_count() -> None:
    known = torch.empty(7, device=META)
    with BytesHeld([known]) as held:
        assert held.peak == 0
        a = torch.empty(1000, device=META)
        b = a.view(10, 100)[1:]
        c = known * 2
        del a
        d = torch.empty(500, device=META, dtype=torch.bfloat16)
        del b, c
        e = torch.empty(100, device=META)
        on_cpu = torch.empty(10**6)
    assert held.peak == 4000 + 28 + 1000
    assert (d.shape, e.shape, on_cpu.shape) == ((500,), (100,), (10**6,))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_holds_the_bytes_of_pytorchs_tracker(recompute: bool) -> None:
    def step(device: torch.device) -> None:
        x = torch.zeros(64, 32, device=device)
        for block in blocks[device]:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        gradients = torch.autograd.grad(x.square().mean(), parameters(device))
        assert len(gradients) == 16

    def parameters(device: torch.device) -> list[nn.Parameter]:
        return [parameter for block in blocks[device] for parameter in block.parameters()]

    blocks = {
        device: [
            nn.Sequential(nn.Linear(32, 128, device=device), nn.GELU(), nn.Linear(128, 32, device=device))
            for _ in range(4)
        ]
        for device in (torch.device("cpu"), META)
    }
    tracker = MemTracker()
    tracker.track_external(*parameters(torch.device("cpu")))
    weights = sum(parameter.nbytes for parameter in parameters(META))
    with tracker:
        step(torch.device("cpu"))
    oracle = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] - weights
    with BytesHeld(parameters(META)) as held:
        step(META)
    assert held.peak == pytest.approx(oracle, rel=0.01)


def test_memory_of_attention_is_not_quadratic_in_the_tokens() -> None:
    q, k, v = (torch.empty(1, 2, 4096, 64, device=META, requires_grad=True) for _ in range(3))
    usual = F.scaled_dot_product_attention
    with BytesHeld([q, k, v]) as plain:
        usual(q, k, v)
    with fused_attention(), BytesHeld([q, k, v]) as fused:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert F.scaled_dot_product_attention is usual
    assert plain.peak > 2 * 4096**2 * 4
    # The result, three gradients of inputs, and one number per row.
    assert 4 * q.nbytes <= fused.peak <= 4.1 * q.nbytes
    with fused_attention():
        real = torch.randn(1, 1, 8, 16)
        assert torch.equal(F.scaled_dot_product_attention(real, real, real), usual(real, real, real))
