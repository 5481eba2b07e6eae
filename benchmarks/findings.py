"""What the numbers at 13B say, in sentences and against the targets; computed from the rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

from .harness import Row
from .runs import Document, current, group, together
from .sizes import FULL_SIZES

_SMALL, _MEDIUM, _USUAL, _LONGEST = (clip.name for clip in FULL_SIZES.clips)
_FORWARD = f"attention in the forward, {_MEDIUM}"
_ITERATION = "iteration, computed from one update of each"
# Benchmark, end of the case, what it is, and the most that it is to take as a multiple of its bare network calls.
_TARGETS = (
    ("sampling", "our Euler sampler", "sampling", 1.01),
    ("iteration", _ITERATION, "training iteration", 1.05),
)
Find = Callable[..., list[Row]]


def findings(documents: Sequence[Document]) -> Iterator[str]:
    """One sentence per finding; those whose rows have not been measured are left out.

    Args:
        documents: results of one machine. Each comparison is of rows that ran together.
    """
    for finding in (_forward, _attention, _compiled, _eight_bits, _branch, _kept, _longest, _loading):
        with suppress(LookupError):
            yield finding(partial(together, documents))


def targets(documents: Sequence[Document]) -> list[Row]:
    """A row for each measured target: what it took, and whether that is within the target."""
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
        f"cuDNN's, and {flash:.3f} s with PyTorch's flash kernel. With the mask that diffusers' transformer builds, "
        f"which hides nothing, it takes {masked:.3f} s; the trainer passes no mask."
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
    return f"An unmerged low-rank branch takes {1 - row['ratio']:.1%} of a forward at {_USUAL}."


def _kept(find: Find) -> str:
    (row,) = find("iteration", f"{_USUAL}: backward, attention kept")
    return (
        f"With `model.keep_attention` a forward and backward at {_USUAL} takes {1 - row['ratio']:.1%} less time, and "
        f"{row['peak_gb']:.1f} GB at most."
    )


def _longest(find: Find) -> str:
    for clip in (_LONGEST, _USUAL, _MEDIUM, _SMALL):
        with suppress(LookupError):
            (row,) = find("iteration", f"{clip}: {_ITERATION}")
            return f"The longest clip that was trained on is {clip}: {row['peak_gb']:.1f} GB at most on one GPU."
    raise LookupError(_ITERATION)


def _loading(find: Find) -> str:
    (row,) = find("loading", "load from disk")
    return (
        f"A file of {row['file_gb']:.1f} GB loads in {row['seconds']:.1f} s from the disk and takes "
        f"{row['host_peak_gb']:.2f} GB of the host's memory."
    )
