"""The report of a review: a page with the counts of every rule, histograms, and pictures near the limits."""

import base64
import html
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from magicdistill_core.errors import cause
from magicdistill_core.files import write_text

from ..console import command
from .manifest import Manifest, Row, read_manifest
from .packages import CurationError
from .rules import DAMAGED, MEASURES, Limits, Review, Rules, apply_rules, read_rules

PAGE, VERDICTS, USED_RULES = "index.html", "verdicts.jsonl", "rules.yaml"
_SHOWN, _NEAR = 12, 6
_BINS, _WIDTH, _HEIGHT = 40, 480, 90


def review(manifest: Path, out: Path, rules: Path) -> Review:
    """Apply rules to a manifest and write the report.

    Args:
        manifest: the manifest's folder.
        out: the folder of the report: the page, the verdicts and a copy of the rules.
        rules: the file of rules.

    Raises:
        MagicDistillError: if the manifest or the rules cannot be used, or `out` cannot be written.
    """
    limits = read_rules(rules)
    scan = read_manifest(manifest)
    verdicts = apply_rules(scan, limits)
    lines = [
        json.dumps({"video": row["video"], "shot": row["shot"], "kept": not reasons, "reasons": reasons})
        for row, reasons in verdicts.verdicts
    ]
    try:
        write_text(out / VERDICTS, "\n".join(lines) + "\n")
        write_text(out / PAGE, _page(scan, verdicts, limits))
        if not (out / USED_RULES).exists() or not rules.samefile(out / USED_RULES):
            shutil.copyfile(rules, out / USED_RULES)
    except OSError as error:
        raise CurationError(f"The report {out} cannot be written ({cause(error)}). Choose another folder.") from error
    return verdicts


def _page(scan: Manifest, review: Review, rules: Rules) -> str:
    shots, kept = len(review.verdicts), review.kept
    again = command("data", "review", scan.folder, "--out", "REPORT", "--rules", f"REPORT/{USED_RULES}")
    parts = [
        f"<h1>{len(kept)} of {shots} shots are kept</h1>",
        f"<p>{_length(kept)} of {_length([verdict.row for verdict in review.verdicts])}, from "
        f"{len({row['video'] for row in kept})} of {len({v.row['video'] for v in review.verdicts})} videos in "
        f"{html.escape(str(scan.videos))}. Change a limit in <code>{USED_RULES}</code> and review again: "
        f"<code>{html.escape(again)}</code></p>",
        _counts(review, rules),
        f"<h2>Kept</h2>{_strips(scan, _spread(kept, 2 * _SHOWN), None)}",
    ]
    if damaged := review.dropped_by(DAMAGED):
        items = "".join(f"<li>{html.escape(row['error'])}</li>" for row in damaged[: 4 * _SHOWN])
        more = f"<p>And {len(damaged) - 4 * _SHOWN} more.</p>" if len(damaged) > 4 * _SHOWN else ""
        parts.append(f"<h2 id={DAMAGED}>Damaged: {len(damaged)}</h2><ul>{items}</ul>{more}")
    parts += [_rule(scan, review, name, limits) for name, limits in rules.items()]
    return _HEAD + "\n".join(parts) + "\n"


def _length(rows: Iterable[Row]) -> str:
    seconds = sum(row["seconds"] or 0 for row in rows)
    return f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds:.0f} s"


def _counts(review: Review, rules: Rules) -> str:
    names = [DAMAGED, *rules]
    lines = []
    for name in sorted(names, key=lambda name: -len(review.dropped_by(name))):
        limits = str(rules[name]) if name in rules else "cannot be read"
        lines.append(
            f"<tr><td><a href=#{name}>{name}</a></td><td>{limits}</td><td>{len(review.dropped_by(name))}</td>"
            f"<td>{review.only_by(name)}</td></tr>"
        )
    return f"<table><tr><th>rule<th>keeps<th>drops<th>drops alone</tr>{''.join(lines)}</table>"


def _rule(scan: Manifest, review: Review, name: str, limits: Limits) -> str:
    dropped = review.dropped_by(name)
    known = [v.row for v in review.verdicts if v.row["error"] is None and v.row.get(name) is not None]
    parts = [
        f"<h2 id={name}>{name}: {limits} drops {len(dropped)}</h2><p>{html.escape(MEASURES[name])}.</p>",
        _histogram([float(row[name]) for row in known], limits),
    ]
    if dropped:
        parts.append(f"<h3>Dropped</h3>{_strips(scan, _spread(dropped, _SHOWN), name)}")
    nearest = sorted(known, key=lambda row: limits.distance(float(row[name])))
    good = [row for row in nearest if limits.hold(row[name])][:_NEAR]
    bad = [row for row in nearest if not limits.hold(row[name])][:_NEAR]
    for title, rows in (("Nearest to the limit, and within", good), ("Nearest to the limit, and outside", bad)):
        if rows:
            parts.append(f"<h3>{title}</h3>{_strips(scan, rows, name)}")
    return "".join(parts)


def _spread(rows: Sequence[Row], count: int) -> list[Row]:
    if len(rows) <= count:
        return list(rows)
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count)]


def _strips(scan: Manifest, rows: Sequence[Row], measure: str | None) -> str:
    figures = []
    for row, pictures in zip(rows, scan.thumbnails(rows), strict=True):
        images = "".join(
            f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(picture).decode()}'>" for picture in pictures
        )
        value = "" if measure is None else f": {measure} {float(row[measure]):.3g}"
        place = "" if row["start"] is None else f" {row['start']:.1f}-{row['end']:.1f} s"
        label = html.escape(f"{row['video']}{place}{value}")
        figures.append(f"<figure>{images}<figcaption>{label}</figcaption></figure>")
    return f"<div class=strips>{''.join(figures)}</div>"


def _histogram(values: Sequence[float], limits: Limits) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "<p>No shot has this measure.</p>"
    ends = [limit for limit in (limits.least, limits.most) if limit is not None]
    low, high = min(finite + ends), max(finite + ends)
    high = high if high > low else low + 1
    counts, _ = np.histogram(finite, _BINS, (low, high))
    step, top = _WIDTH / _BINS, max(int(counts.max()), 1)
    bars = "".join(
        f"<rect x={place * step:.1f} y={_HEIGHT - h:.1f} width={step - 1:.1f} height={h:.1f} />"
        for place, count in enumerate(counts)
        if (h := max(2.0, _HEIGHT * count / top) if count else 0.0)
    )
    lines = "".join(
        f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={_HEIGHT} />" for x in ((e - low) / (high - low) * _WIDTH for e in ends)
    )
    return (
        f"<svg width={_WIDTH} height={_HEIGHT + 16} role=img>{bars}{lines}"
        f"<text x=0 y={_HEIGHT + 13}>{low:.3g}</text>"
        f"<text x={_WIDTH} y={_HEIGHT + 13} text-anchor=end>{high:.3g}</text></svg>"
    )


_HEAD = """<!doctype html>
<html lang=en><meta charset=utf-8><title>Review of shots</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }
h2 { margin: 2.5rem 0 .3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { margin: 1rem 0 .3rem; font-size: 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0; text-align: left; }
td:nth-child(n+3), th:nth-child(n+3) { text-align: right; }
.strips { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; } figure img { height: 90px; display: inline-block; margin-right: 2px; }
figcaption { font-size: 12px; color: #555; max-width: 480px; overflow-wrap: anywhere; }
rect { fill: #6b8fb5; } line { stroke: #c0392b; stroke-width: 2; } text { font-size: 11px; fill: #555; }
code { background: #f2f2f2; padding: 0 .25em; }
</style>
"""
