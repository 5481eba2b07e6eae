"""The result as Markdown, in the papers' layout."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..measures.base import Column, Measure
from ..network_files import NETWORKS
from ..summary import DRIFTS
from .layout import cell, facts_line, number, shown_columns, tables

_LISTED = 30


def markdown(result: Mapping[str, Any], measures: Sequence[Measure]) -> str:
    """Return the page.

    Args:
        result: the result of an evaluation.
        measures: all measures that the user wanted, whether they ran or not.
    """
    systems = result["systems"]
    lines = ["# Evaluation", ""]
    lines += [f"- **{name}**: {facts_line(system['facts'])}" for name, system in systems.items()]
    lines += ["", "Intervals are 95 %: a bootstrap over start images.", ""]
    if result["warnings"]:
        lines += ["## Warnings", "", *(f"- {warning}" for warning in result["warnings"]), ""]
    for table in tables(measures):
        if not table.columns:
            continue
        shown, absent = shown_columns(table, systems)
        lines += [f"## {table.title}", "", table.note, ""]
        if shown:
            lines += [*_table(table.rows(systems), shown), ""]
        if absent:
            lines += [f"Not run: {', '.join(absent)}.", ""]
    lines += _drift(systems) + _differences(result, measures) + _not_run(result) + _left_out(systems) + _notes(systems)
    return "\n".join(lines).rstrip() + "\n"


def _table(systems: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    lines = [f"| Method | {' | '.join(column.heading for column in columns)} |", "|---" * (len(columns) + 1) + "|"]
    return lines + [
        f"| {name} | {' | '.join(cell(system, column) for column in columns)} |" for name, system in systems.items()
    ]


def _drift(systems: Mapping[str, Any]) -> list[str]:
    names = [name for name in DRIFTS if any(name in system["drift"] for system in systems.values())]
    if not names:
        return []
    lines = [
        "## Drift",
        "",
        "Last minus first: 15 % of the frames | 5 seconds. The second needs 10 seconds.",
        "",
        f"| Method | {' | '.join(DRIFTS[name] for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for system_name, system in systems.items():
        cells = [drift_cell(system["drift"].get(name)) for name in names]
        lines.append(f"| {system_name} | {' | '.join(cells)} |")
    return [*lines, ""]


def drift_cell(drift: Mapping[str, Any] | None) -> str:
    """Return the drift of a curve in both definitions.

    Args:
        drift: the figures of both; None if there is no such curve.
    """
    if drift is None:
        return "—"
    return " / ".join("—" if drift[kind] is None else f"{drift[kind]['mean']:+.3g}" for kind in ("share", "seconds"))


def _differences(result: Mapping[str, Any], measures: Sequence[Measure]) -> list[str]:
    lines: list[str] = []
    columns = {column.name: column for measure in measures for column in measure.columns}
    for title, figures in result["differences"].items():
        rows = [
            f"| {columns[name].heading} | {number(one['mean'], columns[name].digits)} | "
            f"{number(one['low'], columns[name].digits)} to {number(one['high'], columns[name].digits)} | {one['n']} |"
            for name, one in figures.items()
            if one is not None and name in columns
        ]
        if rows:
            lines += [f"### {title}", "", "| | difference | 95 % interval | N |", "|---|---|---|---|", *rows, ""]
    return ["## Paired differences", "", "Over the start images that both folders have.", "", *lines] if lines else []


def _not_run(result: Mapping[str, Any]) -> list[str]:
    if not result["not_run"]:
        return []
    lines = ["## Not run", ""]
    lines += [f"- {key}: {reason}" for key, reason in result["not_run"].items()]
    return [*lines, "", "`magicdistill eval --list-networks` shows where to get each file.", ""]


def _left_out(systems: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {name}/{entry['video']}, {entry['measure']}: {entry['reason']}"
        for name, system in systems.items()
        for entry in system["left_out"]
    ]
    return ["## Left out", "", *_limited(lines), ""] if lines else []


def _notes(systems: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {name}/{video}: {note}"
        for name, system in systems.items()
        for video, notes in system["notes"].items()
        for note in notes
    ]
    return ["## Found in videos", "", *_limited(lines), ""] if lines else []


def _limited(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED
    return lines if more <= 0 else [*lines[:_LISTED], f"- and {more} more, in results.json"]


def network_lines() -> list[str]:
    """Return the table of networks: name, file, sha256, source and licence."""
    lines = ["| network | file | sha256 | where to get it | licence |", "|---|---|---|---|---|"]
    for network in NETWORKS.values():
        files = " or ".join(f"`{name}`" for name in network.files)
        lines.append(f"| {network.title} | {files} | `{network.sha256}` | {network.source} | {network.licence} |")
    return lines
