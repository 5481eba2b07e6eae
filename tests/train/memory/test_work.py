"""Counted work: against plain arithmetic, PyTorch's own counter, and the formula of the benchmarks."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from train.memory.bytes_held import META, fused_attention
from train.memory.work import Work, WorkCount


def test_products_bytes_and_weights_of_a_layer() -> None:
    layer, x = nn.Linear(32, 128, bias=False, device=META), torch.empty(10, 32, device=META, requires_grad=True)
    with Work([layer.weight]) as work:
        y = layer(x)
    # Each product is a multiplication and an addition. The transposed weight is a view.
    assert (work.count.products, work.count.moved) == (2 * 10 * 32 * 128, 0)
    assert work.count.weights == layer.weight.nbytes
    with Work([layer.weight]) as backward:
        y.sum().backward()
    # The gradients of the input and of the weight; only the first one reads the weight.
    assert backward.count.products == 2 * work.count.products
    assert backward.count.weights == layer.weight.nbytes


def test_bytes_of_operations_that_are_no_products() -> None:
    a, b = torch.empty(100, 8, device=META), torch.empty(100, 8, device=META, dtype=torch.bfloat16)
    with Work() as views:
        a.view(-1).reshape(8, 100).t()[1:].expand(2, 99, 8)
        torch.empty_like(a)
    assert (views.count.moved, views.count.products) == (0, 0)
    with Work() as sums:
        a + b
    assert sums.count.moved == 800 * (4 + 2 + 4)
    with Work() as in_place:
        a.mul_(2)
    assert in_place.count.moved == 800 * 4


def test_attention_is_counted_apart_from_its_backward() -> None:
    q, k, v = (torch.empty(2, 3, 512, 64, device=META, requires_grad=True) for _ in range(3))
    one_product = 2 * 2 * 3 * 512 * 512 * 64
    with fused_attention(), Work() as work:
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert work.count.attention == 2 * one_product
    # The scores again, and two products for each of the two inputs of both.
    assert work.count.attention_backward == 5 * one_product
    assert work.count.products == 0
    # Three inputs and a result, and their gradients.
    assert work.count.exchanged == 8 * q.nbytes


def test_recomputed_products_are_those_of_pytorchs_counter() -> None:
    blocks = [nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(3)]

    def step() -> None:
        x = torch.zeros(8, 16, requires_grad=True)
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False)
        x.sum().backward()

    oracle = FlopCounterMode(display=False)
    with oracle:
        step()
    with Work() as work:
        step()
    assert work.count.products == oracle.get_total_flops() > 0


def test_amounts_of_work_add_and_multiply() -> None:
    one = WorkCount(products=1, attention=2, attention_backward=3, moved=4, weights=5, exchanged=6, operations=7)
    assert one + one * 2 == WorkCount(3, 6, 9, 12, 15, 18, 21)
