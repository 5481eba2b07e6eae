"""The report of a run, for people: what was trained on what, how it went, what came out, and how to use it.

Read from the run's folder alone, so that it can be written at any time, on any machine; Markdown and plots in
`RUN/report/`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from ..config.run import GuardConfig
from ..run_folder import (
    ABANDONED_FILE,
    BEST,
    CONFIG_FILE,
    EVENTS_FILE,
    FOLDER,
    LATEST,
    METRICS_FILE,
    REPORT,
    VALIDATION,
    checkpoint_folder,
    checkpoint_updates,
    read_manifest,
    run_facts,
)
from .guard import RULES
from .log import read_lines
from .plots import plot_guard, plot_losses

REPORT_FILE = "report.md"
_SHEETS = 6

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run has written down about itself."""

    run: Path
    config: Mapping[str, Any]
    rows: Rows
    abandoned: Rows
    events: Rows

    @property
    def last(self) -> int:
        """The last update that counts."""
        return int(self.rows[-1]["step"])

    @property
    def seconds(self) -> float:
        """Time spent in rounds that count; loading, samples and checkpoints come on top."""
        return sum(float(row.get("seconds", 0.0)) for row in self.rows)

    @property
    def machine(self) -> Mapping[str, Any]:
        """The machine that the run was last started on."""
        return next((e for e in reversed(self.events) if e["event"] in ("started", "resumed")), {})

    @property
    def global_batch(self) -> int:
        """Samples in one update."""
        data = self.config["data"]
        return int(data["micro_batch"] * data["accumulation"] * self.machine.get("processes", 1))


def read_record(run: Path) -> RunRecord:
    """Read what a run has written down.

    Raises:
        CheckpointError: if the folder is no run, or has logged no update.
    """
    run_facts(run)
    rows = read_lines(run / METRICS_FILE)
    if not rows:
        raise CheckpointError(f"{run} has logged no update yet, so there is nothing to report. Train first.")
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    return RunRecord(run, config, rows, read_lines(run / ABANDONED_FILE), read_lines(run / EVENTS_FILE))


def write_report(run: Path) -> Path:
    """Write `RUN/report/report.md` and its plots; returns the Markdown file.

    Raises:
        CheckpointError: if the folder is no run, or has logged no update.
    """
    record = read_record(run)
    folder = run / REPORT
    folder.mkdir(exist_ok=True)
    plot_losses(record.rows, record.abandoned, folder / "losses.png")
    guarded = plot_guard(
        record.rows, record.abandoned, GuardConfig.model_validate(record.config["guard"]), folder / "guard.png"
    )
    parts = [
        f"# {record.run.name}",
        _status(record),
        _table(_facts(record)),
        "## Curves",
        "![losses](losses.png)",
        "Thin lines are single updates, thick ones the running median; dotted are updates that the run went back from; "
        "dashed red are the limits of the guard.",
        "## Guard",
        _guard_text(record),
        *(["![guarded quantities](guard.png)"] if guarded else []),
        "## Samples over time",
        _samples(record),
        "## What happened",
        _timeline(record.events),
        "## How to go on",
        _how_to_go_on(record),
        "## Settings",
        f"```yaml\n{yaml.safe_dump(dict(record.config), sort_keys=False).strip()}\n```",
    ]
    path = folder / REPORT_FILE
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _status(record: RunRecord) -> str:
    updates = record.config["updates"]
    last = record.events[-1] if record.events else {}
    kind = last.get("event")
    if kind == "finished":
        return f"Finished: {record.last} updates."
    if kind == "ended by the guard":
        return f"**Ended by the guard** at update {last['step']} of {updates}: {'; '.join(last['findings'])}."
    if kind == "stopped":
        return f"Stopped by {last['by']} at update {record.last} of {updates}, and saved."
    return f"At update {record.last} of {updates} when this was written."


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    config, machine = record.config, record.machine
    times = [row["seconds"] for row in record.rows if "seconds" in row]
    precision = f"{config['model']['mode']}, {config['model']['precision']}"
    facts = [
        ("Method", f"{config['method']['name']} ({precision})"),
        ("Teacher", str(run_facts(record.run).teacher)),
        ("Dataset", str(config["data"]["dataset"])),
        ("Sampling", f"{config['schedule']['steps']} steps, shift {config['schedule']['shift']:g}"),
        ("Samples an update", str(record.global_batch)),
        ("Time in updates", _duration(record.seconds)),
    ]
    if times:
        facts.append(("Time of an update", f"{median(times):.3g} s (median), {max(times):.3g} s (longest)"))
    if machine:
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        facts += [
            ("Machine", f"{machine['device']}, {machine['processes']} process(es), ZeRO-{config['zero']['stage']}"),
            ("Versions", f"Python {machine['python']}, {versions}"),
        ]
    return facts


def _guard_text(record: RunRecord) -> str:
    config = GuardConfig.model_validate(record.config["guard"])
    latest = record.rows[-config.window :]
    lines = []
    for rule in RULES:
        values = [row[rule.metric] for row in latest if rule.metric in row]
        if not values:
            continue
        limit = getattr(config, rule.limit)
        ratio = record.rows[-1].get(f"guard/{rule.metric.rpartition('/')[2]}")
        now = f"{median(values):.3g}" + (f" ({ratio:.2f} x its start)" if ratio is not None and rule.relative else "")
        side = "at least" if rule.floor else "at most"
        lines.append((rule.metric, now, f"{side} {limit:g}{' x its start' if rule.relative else ''}", rule.meaning))
    if not lines:
        return "The method has none of the quantities that the guard watches; only values that are no number end it."
    head = f"On collapse: `{config.action}`. Medians of the last {len(latest)} updates."
    return head + "\n\n" + _table(lines, ("quantity", "now", "allowed", "beyond that"))


def _samples(record: RunRecord) -> str:
    sheets = sorted((record.run / VALIDATION).glob("step-*.png"))
    if not sheets:
        return "None were made (`validation.every` is 0, or the run was too short)."
    count = min(_SHEETS, len(sheets))
    picked = [sheets[round(i * (len(sheets) - 1) / max(count - 1, 1))] for i in range(count)]
    text = ["Rows are start images, each with its own fixed seed; columns are frames."]
    for sheet in picked:
        update = int(sheet.stem.removeprefix("step-"))
        video = f" ([video](../{VALIDATION}/{sheet.stem}.mp4))" if sheet.with_suffix(".mp4").exists() else ""
        text.append(f"Update {update}{video}\n\n![samples at update {update}](../{VALIDATION}/{sheet.name})")
    return "\n\n".join(text)


def _timeline(events: Rows) -> str:
    rows = []
    for event in events:
        when = datetime.fromtimestamp(event["time"]).strftime("%Y-%m-%d %H:%M:%S")
        said = event.get("findings") or [event[key] for key in ("finding", "by", "device") if key in event]
        said = [*said, *(f"{name}: {was}, now {now}" for name, (was, now) in event.get("changed", {}).items())]
        if event["event"] != "saved":
            rows.append((when, str(event["step"]), event["event"], "; ".join(said)))
    saved = [str(event["step"]) for event in events if event["event"] == "saved"]
    kept = f"Checkpoints were saved at updates {', '.join(saved)}." if saved else "No checkpoint was saved."
    return _table(rows, ("time", "update", "", "")) + "\n\n" + kept


def _how_to_go_on(record: RunRecord) -> str:
    run, root = record.run, record.run / FOLDER
    lines = []
    if (root / LATEST).is_file():
        lines.append(f"    magicdistill export {run} --out generator.safetensors")
    if (root / BEST).is_file():
        best = read_manifest(checkpoint_folder(run, best=True))
        lines.append(f"    magicdistill export {run} --best --out generator.safetensors")
        lines[-1] += f"    # update {best.update}, {record.config['checkpoint']['measure']} {best.measure:.4g}"
    lines.append(f"    magicdistill train {run / CONFIG_FILE} --resume    # add updates=N for a longer run")
    kept = ", ".join(map(str, checkpoint_updates(root))) or "none"
    return (
        f"Checkpoints that are there: {kept}. The exported file goes to `models/diffusion_models` of a ComfyUI.\n\n"
        + "\n".join(lines)
    )


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] | None = None) -> str:
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
    width = len(head or rows[0])
    lines = [head or ("",) * width, ("---",) * width, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
