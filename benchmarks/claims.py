"""What a run's rows say, as sentences: computed from the rows, so that they change when the rows do."""

from collections.abc import Iterator
from typing import Any

from .kernels import by_kind

Document = dict[str, Any]
Row = dict[str, Any]

# Multiples of the bare network calls that are to be kept: benchmark, part of the case's name, the most.
TARGETS = (
    ("sampling", "our Euler sampler", 1.01),
    ("iteration", "iteration, computed", 1.05),
    ("iteration", "rounds of", 1.05),
)
PROFILE = "where the time goes"


def claims(document: Document) -> Iterator[str]:
    """All sentences that a run's rows allow."""
    rows = {name: entry["rows"] for name, entry in document["benchmarks"].items()}
    yield from _forwards(rows.get("forward", []))
    for benchmark, part, target in TARGETS:
        for row in rows.get(benchmark, []):
            if part in row["case"] and "ratio" in row:
                once = ", one repeat" if _repeats(row, rows[benchmark]) == 1 else ""
                yield f"{row['case']}: {row['ratio']:.4f} times its bare calls{_verdict(document, row, target)}{once}"
    yield from _sampling(rows.get("sampling", []))
    yield from _iteration(document["machine"], rows.get("iteration", []))
    for row in rows.get("loading", []):
        if "host_peak_gb" in row and row["case"].startswith("load"):
            yield (
                f"{row['case']}: {row['file_gb']:.3g} GB in {row['seconds']:.3g} s with at most "
                f"{row['host_peak_gb']:.3g} GB of the host's own memory"
            )


def of_run(row: Row) -> str:
    """The older run that a row is of, where several are shown together; empty for one of the benchmark's own run."""
    return str(row.get("of_run", ""))


def _verdict(document: Document, row: Row, target: float) -> str:
    """Whether a target is met; at pocket sizes, where Python takes its part, there is none."""
    if document["machine"].get("sizes") == "pocket":
        return ""
    return f", target at most {target}: **{'met' if row['ratio'] <= target else 'not met'}**"


def _repeats(row: Row, rows: list[Row]) -> int | None:
    """How often a row was measured; a computed one as often as those of its clip that it comes from."""
    clip = row["case"].partition(": ")[0]
    known = [
        other["repeats"]
        for other in rows
        if other["case"].startswith(f"{clip}: bare") and "repeats" in other and of_run(other) == of_run(row)
    ]
    return row.get("repeats", min(known, default=None))


def _forwards(rows: list[Row]) -> Iterator[str]:
    # Only what was measured in one run is compared.
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        group, _, variant = row["case"].partition(": ")
        if "seconds" not in row or "part" in row:
            continue
        if not variant and "of_matmul" in row:
            yield (
                f"one forward of {group}: {row['seconds']:.3g} s, {100 * row['of_matmul']:.0f} % of the rate of a "
                f"plain matrix product"
            )
        elif variant:
            groups.setdefault((group, of_run(row)), {})[variant] = row["seconds"]
    if profile := by_kind(row for row in rows if "part" in row):
        parts = ", ".join(f"{row['case'].partition(': ')[2]} {100 * row['part']:.0f} %" for row in profile)
        yield f"{profile[0]['case'].partition(': ')[0]}: {parts}"
    for (group, _), variants in groups.items():
        if len(variants) > 1:
            (fast, least), *_, (slow, most) = sorted(variants.items(), key=lambda item: item[1])
            yield f"{group}: fastest is {fast} ({least:.3g} s), slowest {slow} ({most / least:.3g} times as long)"


def _sampling(rows: list[Row]) -> Iterator[str]:
    """Peers: diffusers' loop as a multiple of the bare calls, our node as one of ComfyUI's own sampler."""
    for row in rows:
        if "scheduler loop" in row["case"] and "ratio" in row:
            yield f"{row['case']}: {row['ratio']:.4f} times the bare calls"
        elif "sampler node" in row["case"] and "ratio" in row:
            yield (
                f"{row['case']}: {row['ratio']:.3f} times ComfyUI's stock sampler (spread of the repeats "
                f"{100 * row['spread']:.0f} %), results {row['relative_difference']:.2g} apart"
            )


def _iteration(machine: dict[str, Any], rows: list[Row]) -> Iterator[str]:
    """The optimizer's part, what choices cost or save, and the longest clip of which a whole iteration ran."""
    for row in rows:
        if "optimizer_seconds" in row:
            part = row["optimizer_seconds"] / row["seconds"]
            yield f"{row['case']}: the optimizer takes {100 * part:.1f} % of it"
    for row in rows:
        for choice in ("forward without a branch", "backward, attention kept"):
            if row["case"].endswith(choice) and "ratio" in row:
                peak = f", {row['peak_gb']:.1f} GB at most" if "peak_gb" in row else ""
                yield f"{row['case']}: {row['ratio']:.3f} of the usual time{peak}"
    held = [row for row in rows if "iteration, computed" in row["case"] and "peak_gb" in row]
    if held and "device_memory_gb" in machine and machine.get("sizes") != "pocket":
        longest = max(held, key=lambda row: row["tokens"])
        clip = longest["case"].partition(":")[0]
        yield (
            f"the longest clip of which training updates ran is {clip}: {longest['peak_gb']:.1f} GB at most, of "
            f"{machine['device_memory_gb']} GB"
        )
