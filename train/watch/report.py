"""Write the report of a run: settings, curves, validation, guard, samples, events and next steps.

The report reads nothing except the run's folder. It can therefore be written at any time and on any machine. Its
Markdown file and its plots are in `RUN/report/`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from magicdistill_core.errors import CheckpointError
from magicdistill_core.files import write_text

from ..config.methods import FAKE, GENERATOR
from ..config.reading import load_config
from ..config.training import TrainConfig
from ..console import command
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
    RunFacts,
    checkpoint_folder,
    checkpoint_updates,
    read_manifest,
    run_facts,
    update_of,
)
from .guard import RULES
from .log import read_lines
from .plots import plot_guard, plot_losses
from .signal_findings import AGREEMENT, AGREEMENT_FLOOR, below_eps, signal_findings
from .validation_report import validation_section

REPORT_FILE = "report.md"
_SHEETS = 6

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """The configuration and the logs of a run.

    Attributes:
        run: the run's folder.
        config: the training configuration.
        rows: metrics of the rounds that count: one row per update, before them one per round of the fake warm-up.
        abandoned: metrics of the updates that rollbacks dropped.
        events: lines of `events.jsonl`.
    """

    run: Path
    config: TrainConfig
    rows: Rows
    abandoned: Rows
    events: Rows

    @property
    def last(self) -> int:
        """Number of the last update that counts; 0 in the fake warm-up."""
        return max(0, int(self.rows[-1]["step"]))

    @property
    def seconds(self) -> float:
        """Seconds spent in the updates that count, without loading, validation samples and checkpoints."""
        return sum(float(row.get("seconds", 0.0)) for row in self.rows)

    @property
    def machine(self) -> Mapping[str, Any]:
        """The event of the last start or resume; it describes the machine."""
        return next((e for e in reversed(self.events) if e["event"] in ("started", "resumed")), {})

    @property
    def global_batch(self) -> int:
        """Number of samples per update."""
        data = self.config.data
        return data.micro_batch * data.accumulation * int(self.machine.get("processes", 1))


def read_record(run: Path) -> RunRecord:
    """Read the configuration and the logs of a run.

    Args:
        run: the run's folder.

    Raises:
        CheckpointError: if the folder is not a training run, or the run has logged no update.
        ConfigError: if the run's configuration is missing or damaged.
    """
    run_facts(run)
    rows = read_lines(run / METRICS_FILE, "step")
    if not rows:
        raise CheckpointError(
            f"The run {run} has logged no update yet. A report needs at least one update. Train first."
        )
    config = load_config(run / CONFIG_FILE)
    events = read_lines(run / EVENTS_FILE, "event", "step", "time")
    return RunRecord(run, config, rows, read_lines(run / ABANDONED_FILE, "step"), events)


def write_report(run: Path) -> Path:
    """Write `RUN/report/report.md` and its plots.

    Args:
        run: the run's folder.

    Returns:
        The path of the Markdown file.

    Raises:
        CheckpointError: if the folder is not a training run, or the run has logged no update.
        ConfigError: if the run's configuration is missing or damaged.
    """
    record = read_record(run)
    folder = run / REPORT
    folder.mkdir(exist_ok=True)
    drawn = plot_losses(record.rows, record.abandoned, folder / "losses.png")
    guarded = plot_guard(record.rows, record.abandoned, record.config.guard, folder / "guard.png")
    parts = [
        f"# {record.run.name}",
        _status(record),
        _table(_facts(record)),
        "## Curves",
        *(["![losses](losses.png)"] if drawn else []),
        "Thin lines show single updates. Thick lines show the running median. Dotted lines show updates that a "
        "rollback dropped. Dashed red lines show the limits of the guard.",
        "## Validation",
        validation_section(run, record.config.validation, folder),
        "## Guard",
        _guard_text(record),
        *(["![guarded quantities](guard.png)"] if guarded else []),
        "## Training signal",
        _signal_text(record),
        "## Samples over time",
        _samples(record),
        "## Events",
        _timeline(record.events),
        "## Next steps",
        _next_steps(record),
        "## Settings",
        f"```yaml\n{yaml.safe_dump(record.config.model_dump(mode='json'), sort_keys=False).strip()}\n```",
    ]
    path = folder / REPORT_FILE
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _status(record: RunRecord) -> str:
    updates = record.config.updates
    last = record.events[-1] if record.events else {}
    kind, at = last.get("event"), max(0, int(last.get("step", 0)))
    if kind == "finished":
        return f"Finished: {record.last} updates."
    if kind == "ended by the guard":
        return f"**Ended by the guard** at update {at} of {updates}: {'; '.join(last['findings'])}."
    if kind == "failed":
        return f"**Ended by an error** at update {at} of {updates}: {last['error']}"
    if kind == "stopped":
        return f"Stopped by {last['by']} at update {record.last} of {updates}. A checkpoint was saved."
    return f"The run was at update {record.last} of {updates} when this report was written."


def _teacher(facts: RunFacts) -> str:
    return " with ".join([str(facts.teacher), *(f"{file.name} at {weight:g}" for file, weight in facts.teacher_loras)])


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    config, machine = record.config, record.machine
    times = [row["seconds"] for row in record.rows if "seconds" in row and row["step"] > 0]
    precision = f"{config.model.mode}, {config.model.precision}"
    facts = [
        ("Method", f"{config.method.name} ({precision})"),
        ("Teacher", _teacher(run_facts(record.run))),
        ("Dataset", str(config.data.dataset)),
        ("Sampling", f"{config.schedule.steps} steps, shift {config.schedule.shift:g}"),
        ("Samples per update", str(record.global_batch)),
        ("Time spent in updates", _duration(record.seconds)),
    ]
    if times:
        facts.append(("Time per update", f"{median(times):.3g} s (median), {max(times):.3g} s (longest)"))
    if machine:
        versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
        facts += [
            ("Machine", f"{machine['device']}, {machine['processes']} process(es), ZeRO-{config.zero.stage}"),
            ("Versions", f"Python {machine['python']}, {versions}"),
        ]
    return facts


def _guard_text(record: RunRecord) -> str:
    config = record.config.guard
    latest = record.rows[-config.window :]
    lines = []
    for rule in RULES:
        values = [row[rule.metric] for row in latest if math.isfinite(row.get(rule.metric, math.nan))]
        if not values:
            continue
        limit = getattr(config, rule.limit)
        ratio = record.rows[-1].get(f"guard/{rule.metric.rpartition('/')[2]}")
        now = f"{median(values):.3g}" + (
            f" ({ratio:.2f} x its baseline)" if ratio is not None and rule.relative else ""
        )
        side = "at least" if rule.floor else "at most"
        lines.append((rule.metric, now, f"{side} {limit:g}{' x its baseline' if rule.relative else ''}", rule.meaning))
    if not lines:
        return "The method logs none of the quantities that the guard watches. Only NaN or infinite values end the run."
    head = f"Action on collapse: `{config.action}`. The values are medians of the last {len(latest)} updates."
    return head + "\n\n" + _table(lines, ("quantity", "now", "allowed", "meaning of a value outside"))


def _signal_text(record: RunRecord) -> str:
    names = (AGREEMENT, below_eps(GENERATOR), below_eps(FAKE))
    rows = [row for row in record.rows if any(name in row for name in names)]
    if not rows:
        return (
            "The signal was not measured: `logging.signal_every` is 0, or the run was too short. It is measured every "
            "`logging.signal_every` updates and at the end of the fake warm-up."
        )
    meanings = {
        AGREEMENT: f"cosine of the difference of the scores in bf16 with fp32; {AGREEMENT_FLOOR:.2f} is as much noise "
        "as signal",
        below_eps(GENERATOR): "share of the generator's weights with gradients below Adam's epsilon",
        below_eps(FAKE): "the same for the fake branch",
    }
    lines = []
    for name in names:
        if values := [(int(row["step"]), float(row[name])) for row in rows if name in row]:
            worst = (min if name == AGREEMENT else max)(values, key=lambda pair: pair[1])
            cells = [f"{value:.3g} (update {max(0, update)})" for update, value in (values[0], worst, values[-1])]
            lines.append((name, *cells, meanings[name]))
    text = [_table(lines, ("quantity", "first", "worst", "last", "meaning"))]
    # Of quantities that are measured at the same time, the last values decide.
    last = {name: row[name] for row in rows for name in names if name in row}
    findings = signal_findings(last, record.config)
    text += [f"**At the last measurement, {finding}.**" for finding in findings]
    first = signal_findings({AGREEMENT: rows[0][AGREEMENT]}, record.config) if AGREEMENT in rows[0] else ()
    if first and rows[0]["step"] <= 1 and not any("bf16" in finding for finding in findings):
        text.append(
            "When the generator began to learn, the signal was still below the rounding noise of bf16. A longer "
            "`method.fake_warmup` avoids these updates."
        )
    if not findings and not first:
        text.append("The training signal was above its noise.")
    return "\n\n".join(text)


def _samples(record: RunRecord) -> str:
    # Somebody may have put other pictures there.
    sheets = sorted(p for p in (record.run / VALIDATION).glob("step-*.png") if update_of(p.stem) is not None)
    if not sheets:
        return "There are no samples: `validation.every` is 0, or the run was too short."
    count = min(_SHEETS, len(sheets))
    picked = [sheets[round(i * (len(sheets) - 1) / max(count - 1, 1))] for i in range(count)]
    text = ["Each row shows one start image with a fixed seed. Columns are frames."]
    for sheet in picked:
        update = update_of(sheet.stem)
        video = f" ([video](../{VALIDATION}/{sheet.stem}.mp4))" if sheet.with_suffix(".mp4").exists() else ""
        text.append(f"Update {update}{video}\n\n![samples at update {update}](../{VALIDATION}/{sheet.name})")
    return "\n\n".join(text)


def _timeline(events: Rows) -> str:
    rows = []
    for event in events:
        when = datetime.fromtimestamp(event["time"]).strftime("%Y-%m-%d %H:%M:%S")
        details = event.get("findings") or [event[key] for key in ("finding", "by", "device", "error") if key in event]
        details = [*details, *(f"{name}: {was}, now {now}" for name, (was, now) in event.get("changed", {}).items())]
        if event["event"] != "saved":
            rows.append((when, str(event["step"]), event["event"], "; ".join(details)))
    saved = [str(event["step"]) for event in events if event["event"] == "saved"]
    kept = f"Checkpoints were saved at updates {', '.join(saved)}." if saved else "No checkpoint was saved."
    return _table(rows, ("time", "update", "", "")) + "\n\n" + kept


def _next_steps(record: RunRecord) -> str:
    run, root = record.run, record.run / FOLDER
    lines = []
    if (root / LATEST).is_file():
        lines.append(f"    {command('export', run, '--out', 'generator.safetensors')}")
    if (root / BEST).is_file():
        best = read_manifest(checkpoint_folder(run, best=True))
        lines.append(f"    {command('export', run, '--best', '--out', 'generator.safetensors')}")
        if best.measure is not None:
            lines[-1] += f"    # update {best.update}, energy score {best.measure:.4g}"
    lines.append(f"    {command('train', run / CONFIG_FILE, '--resume')}    # add updates=N for a longer run")
    kept = ", ".join(map(str, checkpoint_updates(root))) or "none"
    return (
        f"Available checkpoints: {kept}. Copy the exported file into `models/diffusion_models` of your ComfyUI.\n\n"
        + "\n".join(lines)
    )


def _table(rows: Iterable[tuple[str, ...]], head: tuple[str, ...] | None = None) -> str:
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
    width = len(head or rows[0])
    lines = [head or ("",) * width, ("---",) * width, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
