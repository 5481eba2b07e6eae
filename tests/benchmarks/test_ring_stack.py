"""A copy of a stack is the same training as a run of its own."""

from dataclasses import replace

import pytest
import torch

from benchmarks.ring import Method, Run
from benchmarks.ring_stack import Stack, StackedAdam
from benchmarks.ring_world import Branch, Network, learn_teacher, measured

BASE = Method(batch=16)
# Every setting in which copies may differ, differs.
COPIES = [
    replace(BASE, a_weak=0.0),
    replace(BASE, a_weak=0.5, fake_rate=1e-2),
    replace(BASE, a_weak=0.25, student_rate=5e-4, epsilon=1e-15),
    replace(BASE, a_weak=0.75, student_rate=1e-3, epsilon=1e-4),
]


@pytest.fixture(scope="module")
def teacher() -> Network:
    return learn_teacher(updates=100, width=24)


@pytest.mark.parametrize("shared", [{}, {"normalize": False}, {"supervision": 0.25}, {"steps": 2}], ids=str)
def test_a_stacked_copy_equals_a_single_run(teacher: Network, shared: dict) -> None:
    """Equal draws, rollout lengths, losses and optimizer steps: the weights agree up to rounding."""
    methods, seeds = [replace(method, **shared) for method in COPIES], [3, 1, 4, 1]
    stack = Stack(methods, seeds, teacher)
    runs = [Run(method, teacher, seed, updates=6) for method, seed in zip(methods, seeds, strict=True)]
    for number in range(6):
        stack.round(number)
        for run in runs:
            run.round(number)
    for copy, run in enumerate(runs):
        assert [int(g) for g in stack.generators[copy].get_state()] == [int(g) for g in run.generator.get_state()]
        for index, layer in enumerate(run.student.layers):
            torch.testing.assert_close(stack.student[2 * index][copy].T, layer.weight, atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(stack.student[2 * index + 1][copy][0], layer.bias, atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(stack.branch[2 * index][copy].T, run.branch.down[index], atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(stack.branch[2 * index + 1][copy].T, run.branch.up[index], atol=2e-6, rtol=1e-4)
    moved = [(a.weight - b.weight).abs().max() for a, b in zip(runs[0].student.layers, teacher.layers, strict=True)]
    assert max(moved) > 1e-4


def test_distances_are_those_of_each_generator(teacher: Network) -> None:
    """Against the distance of `ring`, which uses other noise and samples of the data."""
    methods = [replace(BASE, student_rate=rate, batch=64) for rate in (0.0, 3e-3)]
    stack = Stack(methods, [0, 0], teacher)
    runs = [Run(method, teacher, 0, 20) for method in methods]
    for number in range(20):
        stack.round(number)
        for run in runs:
            run.round(number)
    assert stack.distances() == pytest.approx([run.distance() for run in runs], rel=0.1)
    assert stack.distances()[0] == pytest.approx(measured(teacher, 4), rel=0.1)
    assert stack.distances() == stack.distances()


def test_adam_is_pytorchs() -> None:
    start = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    stacked = start.clone().requires_grad_()
    plain = [start[copy].clone().requires_grad_() for copy in range(2)]
    ours = StackedAdam([stacked], [1e-2, 1e-3], [1e-8, 1e-2])
    theirs = [
        torch.optim.Adam([plain[0]], 1e-2, (0.0, 0.999), 1e-8),
        torch.optim.Adam([plain[1]], 1e-3, (0.0, 0.999), 1e-2),
    ]
    for _ in range(5):
        ours.step(stacked.cos().sum())
        for copy, optimizer in enumerate(theirs):
            optimizer.zero_grad()
            plain[copy].cos().sum().backward()
            optimizer.step()
    torch.testing.assert_close(stacked, torch.stack(plain))


def test_alignment_is_that_of_the_single_networks(teacher: Network) -> None:
    """A small branch acts linearly, so the weak weight only scales the difference; a large one does not."""
    stack = Stack([BASE, BASE], [0, 1], teacher)
    with torch.no_grad():
        for index, tensor in enumerate(stack.branch):
            random = torch.randn(tensor.shape[1:], generator=torch.Generator().manual_seed(index))
            tensor[0], tensor[1] = 1e-3 * random, random
    (cosine, ratio), (_, far_ratio) = stack.alignment(0.25)
    assert cosine == pytest.approx(1, abs=1e-3)
    assert ratio == pytest.approx(0.75, abs=1e-3)
    assert abs(far_ratio - 0.75) > 0.1
    branch = Branch(teacher)
    for index in range(len(teacher.layers)):
        branch.down[index].data = stack.branch[2 * index][1].detach().T
        branch.up[index].data = stack.branch[2 * index + 1][1].detach().T
    x, sigma = torch.randn(5, 2), torch.rand(5)
    stacked = stack.score(0.3, torch.zeros(10, 0))(x.repeat(2, 1), sigma.repeat(2))
    torch.testing.assert_close(stacked[5:], teacher(x, sigma, branch, 0.3), atol=1e-4, rtol=1e-4)


def test_what_a_stack_cannot_train_is_an_error(teacher: Network) -> None:
    with pytest.raises(ValueError, match="Train them in different stacks"):
        Stack([BASE, replace(BASE, batch=8)], [0, 0], teacher)
    with pytest.raises(ValueError, match=r"Use `benchmarks\.ring\.Run`"):
        Stack([replace(BASE, adversarial=0.1)], [0], teacher)
