"""The performance page: what the newest runs of every machine say, their tables; predictions and their outcomes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .claims import Document, claims
from .merge import DONE, Source, label, merged
from .predictions import outcomes
from .store import Store
from .tables import missing, number, older, tables

NOTES = Path(__file__).with_name("NOTES.md")
_TITLES = {
    "forward": "One forward of the transformer",
    "iteration": "One iteration of training",
    "sampling": "Sampling",
    "loading": "Writing and loading a checkpoint",
    "autoencoder": "Encoding and decoding",
    "data": "The latent dataset",
}
_EXPLANATIONS = {
    "forward": "TFLOP are counted from the shape: matrix products and attention. Masked attention is given a mask that "
    "hides nothing, as diffusers' transformer makes it.",
    "iteration": "Weak-to-strong distillation by the 13B preset, in mode `lora` with activation checkpointing: five "
    "updates of the fake branch, one of the generator. Bare calls are the same calls of the network with everything "
    "prepared and nothing around them; ratio is the time over theirs.",
    "sampling": "Ratio is the time over that of as many bare calls of the network with prepared inputs. Relative "
    "difference is that of the results from our sampler's (for our node: from the stock sampler's).",
    "loading": "The host's peak is the process's own memory; pages of mapped files, which the system can take back, "
    "are counted in the column after it.",
    "data": "Encoding by the small autoencoder, storing and reading shards; `prepare` is the whole command.",
}
_INTRODUCTION = """# Performance

Written by `python -m benchmarks report` from the files in `benchmarks/results/`; `python -m benchmarks` makes such a
file on any machine (see [`benchmarks/README.md`](../benchmarks/README.md)). Compared variants ran interleaved, in one
process, after a warm-up. Times are medians; the spread is the range of the repeats as a part of the median, and is
left empty where there was one repeat. Every benchmark is shown by the newest run that measured it. Rows of an older run
stand in where a newer one failed or had no time; they are named, and have tables of their own. GB are 10^9 bytes. All
weights and inputs are random numbers. Sentences with numbers are computed from the files.
"""


def performance_page(folder: Path) -> str:
    """The page of every machine and size, each with its newest rows: 13B first, then predictions, then pocket sizes.

    Of pocket sizes it has no tables: they are beside the results.
    """
    runs = {path.stem: Store(path).read() for path in sorted(folder.glob("*.json"), reverse=True)}
    subjects: dict[tuple[Any, ...], dict[str, Document]] = {}
    for name, document in sorted(runs.items(), key=lambda run: run[1]["machine"].get("date", ""), reverse=True):
        subjects.setdefault(_subject(document), {})[name] = document
    together = [merged(of_subject) for of_subject in subjects.values()]
    parts = [_INTRODUCTION, *(render(document) for document in together if not _is_pocket(document))]
    everything = [document for document in runs.values() if not _is_pocket(document)]
    if everything:
        parts.append("\n".join(["## Expected and measured", "", *outcomes(everything)]) + "\n")
        parts.append(NOTES.read_text(encoding="utf-8"))
    for document in together:
        if _is_pocket(document):
            links = ", ".join(_link(name) for name in document["sources"])
            parts.append(f"{summary(document)}\nTables: {links}\n")
    shown = {name for document in together for name in document["sources"]}
    if others := [name for name in runs if name not in shown]:
        parts.append(f"## Other runs\n\nNo row above is of these: {', '.join(_link(name) for name in others)}\n")
    return "\n".join(parts)


def _link(name: str) -> str:
    return f"[{name}](../benchmarks/results/{name}.md)"


def _subject(document: Document) -> tuple[Any, ...]:
    return document["machine"].get("device"), document["machine"].get("sizes")


def _is_pocket(document: Document) -> bool:
    return document["machine"].get("sizes") == "pocket"


def render(document: Document) -> str:
    """One run, or several of one machine, as Markdown: the summary, and the rows as tables."""
    lines = [summary(document)]
    for name, benchmark in document["benchmarks"].items():
        found = list(tables(benchmark["rows"]))
        if found:
            about = [_EXPLANATIONS[name], ""] if name in _EXPLANATIONS else []
            if _is_of_several(document):
                about = [f"Measured {benchmark['measured']}.", "", *about]
            lines += [f"### {_TITLES.get(name, name)}", "", *about, *found, ""]
    return "\n".join(lines)


def summary(document: Document) -> str:
    """The machine, what the rows say, and what was not measured."""
    machine = document["machine"]
    lines = [f"## {machine.get('device', 'Unknown device')}, {machine.get('sizes', '')} sizes", ""]
    if _is_of_several(document):
        lines += _several(document["sources"])
    else:
        lines += [f"- {line}" for line in machine_lines(machine)]
    if _is_pocket(document):
        lines.append("- Pocket sizes: they show that everything runs and guard ratios; they say nothing of 13B's speed")
    if said := list(claims(document)):
        lines += ["", "What the rows say:", "", *(f"- {line}" for line in said)]
    if stand_ins := list(older(document["benchmarks"])):
        lines += ["", "Rows of an older run, for want of newer ones:", "", *(f"- {line}" for line in stand_ins)]
    if unmeasured := list(_unmeasured(document)):
        lines += ["", "Not measured:", "", *(f"- {line}" for line in unmeasured)]
    return "\n".join(lines) + "\n"


def _is_of_several(document: Document) -> bool:
    return len(document.get("sources", ())) > 1


def _several(sources: dict[str, Source]) -> Iterator[str]:
    """The machine in each of several runs, the newest first; what an earlier line said is not said again."""
    said: set[str] = set()
    for source in sources.values():
        yield f"- {label(source.machine)}: {', '.join(source.benchmarks)}"
        lines = [line for line in machine_lines(source.machine) if not line.startswith(label(source.machine))]
        yield from (f"  - {line}" for line in lines if line not in said)
        said |= set(lines)


def _unmeasured(document: Document) -> Iterator[str]:
    benchmarks = document["benchmarks"]
    yield from missing(benchmarks)
    for name, entry in benchmarks.items():
        if entry["status"] != DONE:
            yield f"{name} is incomplete: {entry['status']}"
    absent = [name for name in _TITLES if name not in benchmarks]
    if absent:
        yield f"{', '.join(absent)}: not asked for in {'any' if _is_of_several(document) else 'this'} run"


def machine_lines(machine: Mapping[str, Any]) -> Iterator[str]:
    """What the measurements ran on, as short statements."""
    if "date" in machine:
        yield f"{machine['date']}, commit {machine.get('commit') or 'unknown'}"
        memory = f", device memory {machine['device_memory_gb']} GB" if "device_memory_gb" in machine else ""
        yield f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB{memory}; {machine['system']}"
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        cuda = f", CUDA {machine['cuda']}, cuDNN {machine['cudnn']}" if "cuda" in machine else ""
        yield f"Python {machine['python']}, {versions}{cuda}"
    if "matmul_tflops" in machine:
        yield (
            f"It reaches {number(machine['matmul_tflops'])} TFLOP/s at a plain matrix product of random numbers and "
            f"{number(machine['copy_gb_per_s'])} GB/s at a plain copy"
        )
