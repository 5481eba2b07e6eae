"""What was expected of 13B on one large GPU before it was measured, and what came of it.

Expectations are typed; outcomes are computed from the results. Where there are no rows for one it says why: it was
not measured, or how it failed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .claims import PROFILE, Document, Row
from .kernels import by_kind
from .merge import DONE, NOT_RUN, closest_failure
from .sizes import FULL_SIZES

_SMALL, _MEDIUM, _USUAL, _LONGEST = (clip.name for clip in FULL_SIZES.clips)
_ATTENTION = f"attention in the forward, {_MEDIUM}"
_WEIGHTS = f"weights, {_MEDIUM}"
_ITERATION = "iteration, computed from one update of each"


class NotMeasuredError(LookupError):
    """No result has the rows; the message says what came of them instead."""


class Measured:
    """Rows by benchmark and case, out of the newest result that has them.

    Attributes:
        remarks: failures of newer results at the rows that were given out.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = sorted(documents, key=lambda document: document["machine"].get("date", ""), reverse=True)
        self.remarks: list[str] = []

    def beginning(self, benchmark: str, start: str) -> list[Row]:
        """The measured rows of one result whose cases begin so.

        Raises:
            NotMeasuredError: if there are none.
        """
        return self._newest(
            benchmark, (start,), lambda rows: [row for row in rows if row["case"].startswith(start)] or None
        )

    def rows(self, benchmark: str, *cases: str) -> list[Row]:
        """Rows that were measured together, in one run, in the order of their cases.

        Raises:
            NotMeasuredError: if no run has all of them.
        """

        def pick(rows: list[Row]) -> list[Row] | None:
            found = {row["case"]: row for row in rows}
            return [found[case] for case in cases] if all(case in found for case in cases) else None

        return self._newest(benchmark, cases, pick)

    def row(self, benchmark: str, case: str) -> Row:
        """One row.

        Raises:
            NotMeasuredError: if there is none.
        """
        (row,) = self.rows(benchmark, case)
        return row

    def _newest(self, benchmark: str, cases: Sequence[str], pick: Callable[[list[Row]], list[Row] | None]) -> list[Row]:
        lacks: list[_Lack] = []
        for document in self._documents:
            entry = document["benchmarks"].get(benchmark)
            if entry is None:
                continue
            found = pick([row for row in entry["rows"] if "error" not in row])
            if found is not None:
                self.remarks += [f"in a newer run {lack.text}" for lack in lacks if lack.failed]
                return found
            lacks += _lacks(document["machine"], entry, cases)
        # A failure says more of what was expected than want of time does.
        lacks.sort(key=lambda lack: not lack.failed)
        raise NotMeasuredError(lacks[0].text if lacks else "not measured")


@dataclass(frozen=True)
class _Lack:
    """Why a run has no row of a case; whether it was tried and failed."""

    text: str
    failed: bool


def _lacks(machine: dict[str, Any], entry: dict[str, Any], cases: Sequence[str]) -> Iterator[_Lack]:
    errors = [row for row in entry["rows"] if "error" in row]
    closest = (closest_failure(errors, case) for case in cases)
    telling = list({row["case"]: row for row in closest if row is not None}.values())
    if len(errors) == len(entry["rows"]):
        # What all others need, such as the network, is a case of its own.
        telling = telling or errors
    for row in telling:
        if row["error"].startswith(NOT_RUN):
            yield _Lack(f"not measured: {row['error'].removeprefix(NOT_RUN)}", failed=False)
        else:
            yield _Lack(f"{row['case']}: {row['error']} ({_where(machine)})", failed=True)
    if not telling and entry["status"] != DONE:
        reason = entry["status"].removeprefix(NOT_RUN)
        yield _Lack(f"not measured: {reason}", failed=False)


def _where(machine: dict[str, Any]) -> str:
    memory = [f"{machine['device_memory_gb']} GB"] if "device_memory_gb" in machine else []
    return ", ".join([machine.get("device", "unknown device"), *memory, f"commit {machine.get('commit') or 'unknown'}"])


@dataclass(frozen=True)
class Prediction:
    """An expectation or a target, how its outcome is told, and what follows from that."""

    expected: str
    outcome: Callable[[Measured], str]
    follows: str


def outcomes(documents: Sequence[Document]) -> Iterator[str]:
    """The table of all predictions, as lines of Markdown."""
    yield "Measured on a large GPU at 13B sizes; the last column is written by hand, from what was measured at 0fdcf5b."
    yield ""
    yield "| expected, or asked | measured | what follows |"
    yield "| --- | --- | --- |"
    for prediction in PREDICTIONS:
        measured = Measured(documents)
        try:
            outcome = prediction.outcome(measured)
        except NotMeasuredError as lack:
            outcome = str(lack)
        said = "; ".join([outcome, *dict.fromkeys(measured.remarks)]).replace("|", "\\|")
        yield f"| {prediction.expected} | {said} | {prediction.follows} |"


def _once(row: Row) -> str:
    return " (one repeat)" if row.get("repeats") == 1 else ""


def _forwards(measured: Measured) -> str:
    usual, longest = (measured.row("forward", name) for name in (_USUAL, _LONGEST))
    return (
        f"{usual['seconds']:.2f} s and {longest['seconds']:.2f} s, {100 * usual['of_matmul']:.0f} % and "
        f"{100 * longest['of_matmul']:.0f} % of a plain product's rate"
    )


def _mask(measured: Measured) -> str:
    masked, unmasked = measured.rows("forward", f"{_ATTENTION}: PyTorch's choice, masked", f"{_ATTENTION}: as it is")
    seconds = masked["seconds"], unmasked["seconds"]
    less = 100 * (1 - seconds[1] / seconds[0])
    return f"{seconds[0]:.3f} s with it, {seconds[1]:.3f} s without at {_MEDIUM}: {less:.0f} % less"


def _back_ends(measured: Measured) -> str:
    rows = measured.rows("forward", *(f"{_ATTENTION}: {name}" for name in ("as it is", "cuDNN", "flash")))
    ours, cudnn, flash = (row["seconds"] for row in rows)
    return f"{ours:.3f} s by PyTorch's own choice, {cudnn:.3f} s by cuDNN, {flash:.3f} s by PyTorch's flash kernel"


def _compiled(measured: Measured) -> str:
    group = f"compiled blocks, {_MEDIUM}"
    eager, compiled = measured.rows("forward", f"{group}: eager", f"{group}: compiled")
    return (
        f"{eager['seconds'] / compiled['seconds']:.2f} times as fast at {_MEDIUM} ({compiled['seconds']:.3f} s instead "
        f"of {eager['seconds']:.3f} s); the first call takes {compiled['first_call_seconds']:.0f} s"
    )


def _weights(measured: Measured) -> str:
    kinds = ("bfloat16", "int8, expanded at every call", "fp8, multiplied in fp8")
    exact, expanded, multiplied = measured.rows("forward", *(f"{_WEIGHTS}: {kind}" for kind in kinds))
    products = next(
        row["part"]
        for row in by_kind(measured.beginning("forward", f"{PROFILE}, {_MEDIUM}"))
        if row["case"].endswith("matrix products")
    )
    return (
        f"{multiplied['weights_gb']:.1f} GB instead of {exact['weights_gb']:.1f}; {multiplied['seconds']:.3f} s "
        f"multiplied in fp8, {expanded['seconds']:.3f} s with int8 expanded at every call, {exact['seconds']:.3f} s in "
        f"bf16. Matrix products are {100 * products:.0f} % of a forward's time"
    )


def _casts(measured: Measured) -> str:
    rows = measured.beginning("forward", f"{PROFILE}, {_MEDIUM}")
    (casts,) = (row for row in by_kind(rows) if "casts" in row["case"])
    calls = " and ".join(str(row["calls"]) for row in rows if "copy" in row["case"])
    return f"{100 * casts['part']:.1f} % of a forward's time are casts and copies ({calls} calls)"


def _branch(measured: Measured) -> str:
    row = measured.row("iteration", f"{_USUAL}: forward without a branch")
    return f"{100 * (1 - row['ratio']):.1f} % of a forward at {_USUAL}{_once(row)}"


def _kept(measured: Measured) -> str:
    row = measured.row("iteration", f"{_USUAL}: backward, attention kept")
    return (
        f"{100 * (1 - row['ratio']):.1f} % less (ratio {row['ratio']:.3f}) at {_USUAL}, {row['peak_gb']:.1f} GB at most"
        f"{_once(row)}"
    )


def _sampler(measured: Measured) -> str:
    usual = measured.row("sampling", f"{_USUAL}, 4 steps: our Euler sampler")
    many = f"{_SMALL}, 28 steps"
    small, peer = measured.rows("sampling", f"{many}: our Euler sampler", f"{many}: diffusers' scheduler loop")
    return (
        f"{usual['ratio']:.4f} at {_USUAL}, 4 steps{_once(usual)}; {small['ratio']:.4f} at {_SMALL}, 28 steps"
        f"{_once(small)}, where diffusers' loop takes {peer['ratio']:.4f}"
    )


def _overhead(measured: Measured) -> str:
    updates = (f"{_MEDIUM}: {player} update, exit at the first node" for player in ("fake", "generator"))
    row, fake, generator = measured.rows("iteration", f"{_MEDIUM}: {_ITERATION}", *updates)
    parts = sorted(100 * update["optimizer_seconds"] / update["seconds"] for update in (fake, generator))
    return (
        f"{row['ratio']:.3f} at {_MEDIUM}{_once(fake)}: {fake['ratio']:.3f} for a fake update, "
        f"{generator['ratio']:.3f} for a generator's; the optimizer takes {parts[0]:.1f} to {parts[1]:.1f} % "
        f"of an update"
    )


def _longest(measured: Measured) -> str:
    try:
        row = measured.row("iteration", f"{_LONGEST}: {_ITERATION}")
    except NotMeasuredError as lack:
        for shorter in (_USUAL, _MEDIUM):
            # Why a shorter one was not measured is of no interest here.
            with suppress(NotMeasuredError):
                row = measured.row("iteration", f"{shorter}: {_ITERATION}")
                return f"{lack}; {row['peak_gb']:.1f} GB at {shorter}"
        raise
    return f"{row['peak_gb']:.1f} GB at {_LONGEST}"


def _loading(measured: Measured) -> str:
    row = measured.row("loading", "load from disk")
    return f"{row['file_gb']:.1f} GB in {row['seconds']:.1f} s, {row['host_peak_gb']:.1f} GB of the host's memory"


PREDICTIONS = (
    Prediction(
        "One forward takes about 4 s at 81 and 8 s at 129 frames",
        _forwards,
        "What is left to the plain rate lies in attention and in everything that is neither product nor attention",
    ),
    Prediction(
        "Without the mask that diffusers' transformer makes, which hides nothing, a forward is faster",
        _mask,
        "The trainer's network passes no mask",
    ),
    Prediction(
        "Some attention kernel is faster than what PyTorch chooses",
        _back_ends,
        "No: without a mask the choice is cuDNN's. Nothing to set",
    ),
    Prediction(
        "Compiled blocks are faster",
        _compiled,
        "The largest gain left. The trainer does not compile yet: its blocks run under activation checkpointing and "
        "change branches between calls, and that was not tried compiled",
    ),
    Prediction(
        "Weights in 8 bits halve the memory, and products in fp8 are faster",
        _weights,
        "Memory yes, speed no: bringing activations to fp8 costs what the products gain. Of use where memory is short; "
        "the trainer's weights stay in bf16",
    ),
    Prediction(
        "Casts between precisions cost time that our wrappers could save",
        _casts,
        "No: by their number they are diffusers' rotary embedding and norms of queries and keys in float32. Compiling "
        "fuses them",
    ),
    Prediction(
        "An unmerged branch costs a few percent of a forward", _branch, "Branches stay unmerged: roles switch for free"
    ),
    Prediction(
        "Attention kept through activation checkpointing: forward and backward take 17 % less at 81 frames",
        _kept,
        "`model.keep_attention`, off by default since it takes memory",
    ),
    Prediction(
        "The sampler takes at most 1.01 times its bare calls",
        _sampler,
        "Up to commit 0fdcf5b two numbers went to the device at every step, and the host waited for each. Now the "
        "whole schedule goes there once",
    ),
    Prediction(
        "An iteration takes at most 1.05 times its bare calls",
        _overhead,
        "Up to commit 0fdcf5b the first call of a length, in which kernels are chosen, counted to the fake update; "
        "since then every length is warmed up",
    ),
    Prediction(
        "129 frames at 544x960 can be trained in 141 GB",
        _longest,
        "One iteration at that length decides it: it comes before the shorter 81 frames. What it will hold is computed "
        "in [memory](memory.md), by a way that comes within 1.3 % of the three peaks that are there beside it",
    ),
    Prediction(
        "A 26-GB file loads without as much memory of the host",
        _loading,
        "Files are mapped, and tensors copied one by one",
    ),
)
