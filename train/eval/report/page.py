"""The result as an HTML page: figures, curves, and the videos of each start image side by side."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from PIL import Image

from magicdistill_core.errors import VideoError
from magicdistill_core.files import write_text
from magicdistill_core.media.contact_sheet import contact_sheet
from magicdistill_core.media.video import read_video, resize_crop

from ..measures.base import Measure
from ..run import REFERENCE, Evaluation
from ..summary import DRIFTS, ScoredVideo
from .layout import NOT_RUN, Table, cell, facts_line, number, shown_columns, tables
from .markdown import drift_cell
from .plots import plot_means, plot_videos

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1250px; padding: 0 1em; color: #1b1f24; }
h1 { font-size: 1.7em; } h2 { margin-top: 2em; border-bottom: 1px solid #d8dde3; padding-bottom: .2em; }
table { border-collapse: collapse; margin: .6em 0; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #d8dde3; padding: .3em .6em; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { background: #f4f6f8; font-weight: 600; }
.scroll { overflow-x: auto; } .muted { color: #6a737d; } .interval { color: #6a737d; font-size: .85em; display: block; }
.warning { background: #fff6e0; border-left: 4px solid #e0a100; padding: .4em .8em; margin: .3em 0; }
.videos { display: flex; flex-wrap: wrap; gap: 12px; } .videos figure { margin: 0; width: 280px; }
video, .sheet { width: 100%; background: #eee; } figcaption { font-size: .9em; } img { max-width: 100%; }
ul.notes { margin: .2em 0; padding-left: 1.1em; color: #9a3412; font-size: .9em; }
"""
_SHEET_FRAMES, _SHEET_WIDTH = 8, 170
_WORST = 6
_LISTED = 40


def write_page(evaluation: Evaluation, wanted: Sequence[Measure], out: Path, shown: int) -> None:
    """Write `index.html` and its pictures in `pictures/`.

    Args:
        evaluation: what was measured.
        wanted: all measures that the user wanted.
        out: the folder of the result.
        shown: number of start images whose videos are shown.
    """
    pictures = out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for old in (*pictures.glob("*.png"), *pictures.glob("*.jpg")):
        old.unlink()
    result = evaluation.result
    body = ["<h1>Evaluation</h1>", _facts(result), _warnings(result)]
    body += [_table(table, result["systems"]) for table in tables(wanted) if table.columns]
    body += [_drift(result["systems"]), _differences(result, wanted)]
    if plot_means(evaluation.videos, pictures / "curves.png"):
        body.append("<h2>Curves</h2><p>Mean of each folder; thin lines are single videos.</p>")
        body.append('<img src="pictures/curves.png" alt="curves over time">')
    body.append(_worst_moments(evaluation, pictures))
    body.append(_side_by_side(evaluation, out, pictures, shown))
    body += [_list("Not run", [f"{key}: {reason}" for key, reason in result["not_run"].items()]), _left_out(result)]
    page = "\n".join(part for part in body if part)
    write_text(
        out / "index.html",
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>\n'
        f"<body>\n{page}\n</body></html>\n",
    )


def _facts(result: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<li><b>{escape(name)}</b>: {escape(facts_line(system['facts']))}</li>"
        for name, system in result["systems"].items()
    )
    return f"<ul>{rows}</ul><p class='muted'>Brackets are 95 % intervals: a bootstrap over start images.</p>"


def _warnings(result: Mapping[str, Any]) -> str:
    return "".join(f"<p class='warning'>{escape(warning)}</p>" for warning in result["warnings"])


def _table(table: Table, systems: Mapping[str, Any]) -> str:
    columns, absent = shown_columns(table, systems)
    note = f"<p class='muted'>{escape(table.note)}</p>"
    if absent:
        note += f"<p class='muted'>Not run: {escape(', '.join(absent))}.</p>"
    if not columns:
        return f"<h2>{escape(table.title)}</h2>{note}"
    head = "".join(f"<th>{escape(column.heading)}</th>" for column in columns)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{_cell(cell(system, column))}</td>' for column in columns)}</tr>"
        for name, system in table.rows(systems).items()
    )
    return (
        f"<h2>{escape(table.title)}</h2>{note}<div class='scroll'><table><tr><th>Method</th>{head}</tr>{rows}"
        f"</table></div>"
    )


def _cell(text: str) -> str:
    if text == NOT_RUN:
        return f"<span class='muted'>{NOT_RUN}</span>"
    value, space, interval = text.partition(" ")
    return escape(value) + (f"<span class='interval'>{escape(interval)}</span>" if space else "")


def _drift(systems: Mapping[str, Any]) -> str:
    names = [name for name in DRIFTS if any(name in system["drift"] for system in systems.values())]
    if not names:
        return ""
    head = "".join(f"<th>{escape(DRIFTS[name])}</th>" for name in names)
    rows = ""
    for system_name, system in systems.items():
        cells = "".join(f"<td>{escape(drift_cell(system['drift'].get(name)))}</td>" for name in names)
        rows += f"<tr><td>{escape(system_name)}</td>{cells}</tr>"
    return (
        "<h2>Drift</h2><p class='muted'>Last minus first, for 15 % of the frames / for 5 seconds. The second needs a "
        f"video of 10 seconds.</p><div class='scroll'><table><tr><th>Method</th>{head}</tr>{rows}</table></div>"
    )


def _differences(result: Mapping[str, Any], measures: Sequence[Measure]) -> str:
    """Show the paired differences to the first folder; those whose interval does not contain 0 are bold."""
    pairs = {title: figures for title, figures in result["differences"].items() if any(figures.values())}
    if not pairs:
        return ""
    rows = ""
    for column in (column for measure in measures for column in measure.columns):
        cells = [figures.get(column.name) for figures in pairs.values()]
        if any(cells):
            texts = "".join(f"<td>{_difference(one, column.digits)}</td>" for one in cells)
            rows += f"<tr><td>{escape(column.heading)}</td>{texts}</tr>"
    head = "".join(f"<th>{escape(title)}</th>" for title in pairs)
    return (
        "<h2>Paired differences</h2><p class='muted'>Over the start images that both folders have. Bold: the 95 % "
        f"interval does not contain 0.</p><div class='scroll'><table><tr><th></th>{head}</tr>{rows}</table></div>"
    )


def _difference(one: Mapping[str, Any] | None, digits: int) -> str:
    if one is None:
        return "—"
    text = number(one["mean"], digits)
    if one["low"] is None:
        return text
    interval = f"<span class='interval'>[{number(one['low'], digits)}, {number(one['high'], digits)}]</span>"
    return (f"<b>{text}</b>" if one["low"] > 0 or one["high"] < 0 else text) + interval


def _worst_moments(evaluation: Evaluation, pictures: Path) -> str:
    """Show the frames in which faces are farthest from their start image."""
    found = [
        (video.value("identity_worst") or 0.0, system, video)
        for system, some in evaluation.videos.items()
        if system != REFERENCE
        for video in some
        if "identity" in video.scores and "identity_worst" in video.scores["identity"].pictures
    ]
    if not found:
        return ""
    found.sort(key=lambda entry: -entry[0])
    figures = []
    for place, (distance, system, video) in enumerate(found[:_WORST]):
        name = f"worst-{place}.png"
        Image.fromarray(video.scores["identity"].pictures["identity_worst"].numpy()).save(pictures / name)
        figures.append(
            f'<figure><img src="pictures/{name}" alt="worst moment"><figcaption>{escape(system)}/'
            f"{escape(video.item.name)}: {distance:.2f}</figcaption></figure>"
        )
    return (
        "<h2>Worst moments</h2><p class='muted'>The frames whose face is farthest from the start image (dlib). Above "
        f"0.6 it is another person to dlib.</p><div class='videos'>{''.join(figures)}</div>"
    )


def _side_by_side(evaluation: Evaluation, out: Path, pictures: Path, shown: int) -> str:
    starts: dict[str, dict[str, ScoredVideo]] = {}
    for system, some in evaluation.videos.items():
        for video in some:
            if video.unreadable is None:
                starts.setdefault(video.item.start, {}).setdefault(system, video)
    # First what most folders have; among those, what most was found in.
    order = sorted(starts, key=lambda start: (-len(starts[start]), -sum(len(v.notes) for v in starts[start].values())))
    parts = []
    for place, start in enumerate(order[:shown]):
        videos = starts[start]
        title = escape(Path(start).name)
        parts.append(f"<h3>{title}</h3><div class='videos'>")
        for system, video in videos.items():
            where = quote(Path(os.path.relpath(video.item.path, out)).as_posix())
            notes = "".join(f"<li>{escape(note)}</li>" for note in video.notes)
            parts.append(
                f'<figure><video src="{where}" controls muted loop preload="metadata"></video>'
                f"<figcaption>{escape(system)}: {escape(video.item.name)}</figcaption>"
                f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</figure>"
            )
        parts.append("</div>")
        if _sheet(videos, pictures / f"sheet-{place}.jpg"):
            parts.append(f'<img src="pictures/sheet-{place}.jpg" alt="frames of {title}">')
        if plot_videos(videos, pictures / f"curves-{place}.png"):
            parts.append(f'<img src="pictures/curves-{place}.png" alt="curves of {title}">')
    left = f"<p class='muted'>{len(order) - shown} more start images are not shown.</p>" if len(order) > shown else ""
    return f"<h2>Videos</h2>{left}{''.join(parts)}" if parts else ""


def _sheet(videos: Mapping[str, ScoredVideo], path: Path) -> bool:
    """Write the frames of the videos of one start image, evenly spaced in time, one row per folder."""
    rows, labels = [], []
    for system, video in videos.items():
        count = int(video.facts.get("frames", 0))
        if not count:
            continue
        wanted = set(torch.linspace(0, count - 1, min(_SHEET_FRAMES, count)).round().int().tolist())
        height = round(_SHEET_WIDTH * video.facts["height"] / video.facts["width"])
        try:
            frames = [
                resize_crop(frame, height, _SHEET_WIDTH)
                for number, frame in enumerate(read_video(video.item.path).frames)
                if number in wanted
            ]
        except VideoError:
            continue
        rows.append(torch.stack(frames))
        labels.append(f"{system}: {video.item.name}")
    if not rows:
        return False
    size = rows[0].shape[1:3]
    rows = [row if row.shape[1:3] == size else resize_crop(row, *size) for row in rows]
    contact_sheet(rows, labels, _SHEET_FRAMES).save(path, quality=88)
    return True


def _left_out(result: Mapping[str, Any]) -> str:
    return _list(
        "Left out",
        [
            f"{name}/{entry['video']}, {entry['measure']}: {entry['reason']}"
            for name, system in result["systems"].items()
            for entry in system["left_out"]
        ],
    )


def _list(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    shown = [*lines[:_LISTED], *([f"and {len(lines) - _LISTED} more, in results.json"] if len(lines) > _LISTED else [])]
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in shown)}</ul>"
