"""Sentences and targets for the performance page, computed from the rows at 13B sizes.

Each function `_forward`, `_attention`, ... writes one sentence. Its argument `find(benchmark, *cases)` returns the rows
of these cases from one run, or raises `LookupError` if no run measured all of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from .harness import Row
from .runs import Document, current, group, together
from .sizes import FULL_SIZES

_SMALL, _MEDIUM, _USUAL, _LONGEST = (clip.name for clip in FULL_SIZES.clips)
_FORWARD = f"attention in the forward, {_MEDIUM}"
_ITERATION = "iteration, computed from one update of each"
# Benchmark, end of the case's name, name in the table, and the largest allowed ratio of its time to the time of its
# bare network calls.
_TARGETS = (
    ("sampling", "our Euler sampler", "sampling", 1.01),
    ("iteration", _ITERATION, "training iteration", 1.05),
)
Find = Callable[..., list[Row]]


def findings(documents: Sequence[Document]) -> Iterator[str]:
    """Yield one sentence per finding. A finding is skipped if no run measured all of its rows.

    Args:
        documents: the results of all runs of one machine. A sentence uses the rows of a single run, so that its numbers
            can be compared.
    """
    for finding in (_forward, _attention, _compiled, _eight_bits, _branch, _kept, _longest, _loading):
        with suppress(LookupError):
            yield finding(partial(together, documents))


def targets(documents: Sequence[Document]) -> list[Row]:
    """Return one table row per measured case that has a target: the target, whether it is met, and the ratio."""
    rows = []
    for benchmark, ending, what, most in _TARGETS:
        for _, measured in current(documents, benchmark):
            for row in measured:
                if row["case"].endswith(f": {ending}"):
                    repeats = {"repeats": row["repeats"]} if "repeats" in row else {}
                    target = f"at most {most}: {'met' if row['ratio'] <= most else 'missed'}"
                    ratio = f"{row['ratio']:.3f}"
                    rows.append({"case": f"{what}, {group(row)}", **repeats, "target": target, "ratio": ratio})
    return rows


def _forward(find: Find) -> str:
    usual, longest = find("forward", _USUAL, _LONGEST)
    return (
        f"A forward takes {usual['seconds']:.2f} s at {_USUAL} and {longest['seconds']:.2f} s at {_LONGEST}. It "
        f"runs at {usual['of_matmul']:.0%} and {longest['of_matmul']:.0%} of the speed of a plain matrix product."
    )


def _attention(find: Find) -> str:
    kinds = ("as it is", "cuDNN", "flash", "PyTorch's choice, masked")
    own, cudnn, flash, masked = (row["seconds"] for row in find("forward", *(f"{_FORWARD}: {kind}" for kind in kinds)))
    return (
        f"At {_MEDIUM} a forward takes {own:.3f} s with the attention kernel that PyTorch chooses, {cudnn:.3f} s with "
        f"cuDNN's, and {flash:.3f} s with PyTorch's flash kernel. diffusers' transformer passes a mask that hides "
        f"nothing; with it a forward takes {masked:.3f} s. The trainer passes no mask."
    )


def _compiled(find: Find) -> str:
    eager, compiled = find("forward", *(f"compiled blocks, {_MEDIUM}: {kind}" for kind in ("eager", "compiled")))
    return (
        f"Compiled blocks make a forward {eager['seconds'] / compiled['seconds']:.2f} times as fast at {_MEDIUM}; the "
        f"first call takes {compiled['first_call_seconds']:.0f} s. The trainer does not compile."
    )


def _eight_bits(find: Find) -> str:
    kinds = ("bfloat16", "int8, expanded at every call", "fp8, multiplied in fp8")
    exact, int8, fp8 = find("forward", *(f"weights, {_MEDIUM}: {kind}" for kind in kinds))
    return (
        f"Weights in 8 bits take {int8['weights_gb']:.1f} GB instead of {exact['weights_gb']:.1f} GB. A forward takes "
        f"{exact['seconds']:.3f} s in bf16, {int8['seconds']:.3f} s with int8 weights, and {fp8['seconds']:.3f} s with "
        f"matrix products in fp8."
    )


def _branch(find: Find) -> str:
    (row,) = find("iteration", f"{_USUAL}: forward without a branch")
    return f"An unmerged low-rank branch takes {1 - row['ratio']:.1%} of the time of a forward at {_USUAL}."


def _kept(find: Find) -> str:
    (row,) = find("iteration", f"{_USUAL}: backward, attention kept")
    return (
        f"With `model.keep_attention` a forward with its backward takes {1 - row['ratio']:.1%} less time at {_USUAL}."
    )


def _longest(find: Find) -> str:
    for clip in (_LONGEST, _USUAL, _MEDIUM, _SMALL):
        with suppress(LookupError):
            find("iteration", f"{clip}: {_ITERATION}")
            return f"The longest clip that was trained on, with one GPU, has {clip}."
    raise LookupError(_ITERATION)


def _loading(find: Find) -> str:
    (row,) = find("loading", "load from disk")
    return (
        f"A file of {row['file_gb']:.1f} GB loads in {row['seconds']:.1f} s from the disk. Loading it takes "
        f"{row['host_peak_gb']:.2f} GB of the host's memory."
    )
