"""Write the performance page, and the page of each single run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .findings import findings, targets
from .runs import Document, current, newest_first, unmeasured
from .store import Store
from .tables import number, table, tables

# Title and explanation of each benchmark's tables, in the order of the page.
_BENCHMARKS = {
    "forward": (
        "One forward of the transformer",
        "TFLOP are computed from the network's shape: matrix products and attention. `as it is`: the network as the "
        "trainer runs it. `masked`: attention gets a mask that hides nothing, as in diffusers' transformer.",
    ),
    "iteration": (
        "One iteration of training",
        "Weak-to-strong distillation with the 13B preset in mode `lora` with activation checkpointing: five updates "
        "of the fake score, one of the generator. A bare call is a network call alone, with prepared inputs: no "
        "loss, no engine, no optimizer. `ratio` is the time divided by the time of the same network calls made as "
        "bare calls. `exit at the first node`: the rollout stops at the schedule's first level. `iteration, computed "
        "from one update of each` adds the forwards of the longer rollouts: on average over the exit levels, a "
        "rollout of a 4-step generator takes 1.5 forwards more. `forward without a branch` and `backward, attention "
        "kept` are bare calls; their `ratio` compares them with the bare call that the trainer makes. `restored`: "
        "the optimizer's state is restored and the update is repeated. `relative difference` is the distance between "
        "both results, divided by the distance that the update moves the weights.",
    ),
    "sampling": (
        "Sampling",
        "`ratio` is the time divided by the time of the same number of bare network calls with prepared inputs. "
        "`relative difference` compares the latents of diffusers' loop with those of our sampler, and the latents of "
        "our node with those of ComfyUI's stock sampler.",
    ),
    "loading": (
        "Writing and loading a model file",
        "`host peak` is the process's own memory. `with mapped files` adds the pages of mapped files; the system can "
        "free those at any time.",
    ),
    "autoencoder": ("Encoding and decoding", ""),
    "data": (
        "The latent dataset",
        "Encoding with the small autoencoder, writing shards and reading them. `prepare` is `magicdistill prepare`.",
    ),
    "context_parallel": (
        "One sample on two processes",
        "Two processes share the video tokens of one sample (`context_parallel: 2`). `ratio` compares the fastest "
        "round with that of one process. `communication` is the share of the fastest round in exchanges between the "
        "processes, with the waiting for the other one. `sent` is what each process sends to the other. The network is "
        "a branch on frozen weights, with recomputed activations; at pocket size it has two heads. On a CPU each "
        "process has one thread.",
    ),
}
_INTRODUCTION = """# Performance

`python -m benchmarks report` writes this page from the files in `benchmarks/results/`. `python -m benchmarks` measures
a machine and adds such a file; see [`benchmarks/README.md`](../benchmarks/README.md).

How to read it:

- All numbers come from the files; the sentences are generated from them. Weights and inputs are random numbers.
- The variants of one table ran in turns, in one process, after a warm-up. A time is the median of its repeats.
  `spread` is the range of the repeats relative to the median; it is empty if there was one repeat.
- `of a plain product` compares TFLOP/s with a plain matrix product on the same machine.
- GPU time was limited: most cases at 13B have one or two repeats.
- Each row comes from the newest run that measured it. Do not compare tables of different runs.
- Training runs in one process here, so no number includes communication between GPUs.
- GB are 10^9 bytes.
"""
_POCKET = """## Pocket sizes

Without a large GPU the same benchmarks run on the pocket network. These numbers show that everything runs. They
do not predict the speed of 13B models, because Python takes most of the time.
"""


def performance_page(folder: Path) -> str:
    """Return the performance page: the newest rows of each machine at 13B sizes, then links to the pocket runs.

    Args:
        folder: the folder of the JSON files.
    """
    runs = {path.stem: Store(path).read() for path in sorted(folder.glob("*.json"))}
    machines: dict[str, list[Document]] = {}
    for document in newest_first([document for document in runs.values() if not _is_pocket(document)]):
        machines.setdefault(document["machine"].get("device", ""), []).append(document)
    links: list[str] = []
    parts = [_INTRODUCTION, *(render(documents) for documents in machines.values()), _POCKET]
    for name, document in runs.items():
        if _is_pocket(document):
            link = f"[{name}](../benchmarks/results/{name}.md)"
            links.append(f"- {link}: {document['machine'].get('device')}, {_label(document)}{_remark(document)}\n")
    return "\n".join([*parts, "".join(links)])


def render(documents: Sequence[Document]) -> str:
    """Return the runs of one machine as Markdown: the machine, findings, unmeasured cases, and the tables."""
    documents = newest_first(documents)
    machine = documents[0]["machine"]
    lines = [f"## {machine.get('device', 'Unknown device')}, {machine.get('sizes', '')} sizes", ""]
    lines += [f"- {line}" for line in _machine_lines(machine)]
    lines += [f"- {_label(document)}: {', '.join(document['benchmarks'])}{_remark(document)}" for document in documents]
    if not _is_pocket(documents[0]):
        lines += _bullets("Findings:", findings(documents))
        if rows := targets(documents):
            lines += ["", "Overhead around the network calls:", "", *table(rows)]
    reasons = [f"{reason}: {'; '.join(cases)}" for reason, cases in unmeasured(documents).items()]
    absent = [name for name in _BENCHMARKS if not any(name in document["benchmarks"] for document in documents)]
    lines += _bullets("Not measured:", [*reasons, *([f"not requested: {', '.join(absent)}"] if absent else [])])
    for name, (title, explanation) in _BENCHMARKS.items():
        for count, (document, rows) in enumerate(current(documents, name)):
            if not count:
                lines += ["", f"### {title}", *(["", explanation] if explanation else [])]
            if len(documents) > 1:
                lines += ["", f"Run of {_label(document)}:"]
            lines += ["", *tables(rows)]
    return "\n".join([*lines, ""])


def _bullets(title: str, items: Iterator[str] | list[str]) -> list[str]:
    lines = [f"- {item}" for item in items]
    return ["", title, "", *lines] if lines else []


def _is_pocket(document: Document) -> bool:
    return document["machine"].get("sizes") == "pocket"


def _label(document: Document) -> str:
    """Return the date and the commit of a run."""
    machine = document["machine"]
    return f"{machine.get('date', 'unknown date')[:16].replace('T', ' ')}, commit {machine.get('commit') or 'unknown'}"


def _remark(document: Document) -> str:
    """Return the remark that a person wrote into the file, in parentheses."""
    return f" ({document['machine']['remark']})" if "remark" in document["machine"] else ""


def _machine_lines(machine: dict[str, Any]) -> Iterator[str]:
    """Yield lines about hardware, versions and plain speed of a machine."""
    if "cpu" in machine:
        memory = f", device memory {machine['device_memory_gb']} GB" if "device_memory_gb" in machine else ""
        yield f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB{memory}; {machine['system']}"
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        cuda = f", CUDA {machine['cuda']}, cuDNN {machine['cudnn']}" if "cuda" in machine else ""
        yield f"Python {machine['python']}, {versions}{cuda}"
    if "matmul_tflops" in machine:
        yield (
            f"A plain matrix product of random numbers reaches {number(machine['matmul_tflops'])} TFLOP/s, a plain "
            f"copy {number(machine['copy_gb_per_s'])} GB/s"
        )
