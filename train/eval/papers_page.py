"""The tables of `docs/evaluation.md`: the networks, and the papers' tables with our rows.

`python -m train.eval.papers_page` writes them. Our rows come from `docs/results/evaluation/13b.json` and `pocket.json`,
which are results of `magicdistill eval` whose folders have the names of `PaperRow.name`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicdistill_core.files import write_text

from .measures.base import Column
from .report.layout import AVERAGE, NOT_RUN, VBENCH_ORDER, cell
from .report.markdown import network_lines

DOCS = Path(__file__).resolve().parents[2] / "docs"
OURS = {"13b": "ours, 13B", "pocket": "ours, pocket"}

VBENCH = (*VBENCH_ORDER, AVERAGE.name)
WITHOUT_FLICKERING = tuple(name for name in VBENCH if name != "temporal_flickering")
SETS = ("fid", "fvd")
TITLES = {
    **{name: name.replace("_", " ") for name in VBENCH},
    "fid": "FID",
    "fvd": "FVD",
}
W2S, SUPERVISED = "MagicDistillation w/o reg. loss", "MagicDistillation w/ reg. loss"
_METHODS = {
    "Euler": "euler",
    "LCM": "lcm",
    "DMD": "dmd",
    "DMD2": "dmd2",
    W2S: "w2s",
    SUPERVISED: "supervised",
    "MagicDistillation": "w2s-general",
}


@dataclass(frozen=True)
class PaperRow:
    """What a paper states for one method.

    Attributes:
        method: the method or the model.
        steps: its number of steps, or of network calls.
        values: its numbers, in the order of the table's columns.
    """

    method: str
    steps: int
    values: tuple[float, ...]

    @property
    def name(self) -> str | None:
        """The name of our folder for this row; None for models of others."""
        method = _METHODS.get(self.method)
        return None if method is None else f"{method}-{self.steps}"


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper.

    Attributes:
        title: which table, and on which videos.
        columns: names of its columns.
        rows: its rows.
        key: appended to our folders' names where a method is measured on several sets of videos.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    key: str = ""


TABLES = (
    PaperTable(
        "MagicDistillation, Table 1: portraits, VBench",
        VBENCH,
        (
            PaperRow("Euler", 28, (0.9578, 0.8933, 0.9947, 0.7000, 0.5278, 0.6106, 0.9906, 0.8107)),
            PaperRow("Euler", 4, (0.9738, 0.8773, 0.9967, 0.0448, 0.4574, 0.3902, 0.9971, 0.6768)),
            PaperRow("LCM", 4, (0.8809, 0.9313, 0.9897, 0.0551, 0.4729, 0.5250, 0.9855, 0.6915)),
            PaperRow("DMD2", 4, (0.9613, 0.9111, 0.9932, 0.7586, 0.4643, 0.5725, 0.9832, 0.8063)),
            PaperRow(
                "MagicDistillation w/o reg. loss", 4, (0.9763, 0.9533, 0.9954, 0.7683, 0.4899, 0.5708, 0.9993, 0.8219)
            ),
            PaperRow(
                "MagicDistillation w/ reg. loss", 4, (0.9735, 0.9478, 0.9955, 0.0379, 0.5732, 0.7103, 0.9939, 0.7474)
            ),
            PaperRow("Euler", 1, (0.8729, 0.8177, 0.9964, 0.0000, 0.3906, 0.2441, 0.9968, 0.6169)),
            PaperRow("LCM", 1, (0.9662, 0.9236, 0.9963, 0.0310, 0.4465, 0.4125, 0.9959, 0.6817)),
            PaperRow("DMD2", 1, (0.9742, 0.9590, 0.9963, 0.0054, 0.5090, 0.5922, 0.9964, 0.7189)),
            PaperRow(
                "MagicDistillation w/o reg. loss", 1, (0.9620, 0.9656, 0.9961, 0.0523, 0.5512, 0.6909, 0.9953, 0.7448)
            ),
        ),
    ),
    PaperTable(
        "MagicDistillation, Table 2: portraits, with general data",
        VBENCH,
        (
            PaperRow("WanX-I2V (14B)", 50, (0.9800, 0.9649, 0.9910, 0.5625, 0.5980, 0.7031, 0.9858, 0.8264)),
            PaperRow("HunyuanVideo-I2V (13B)", 50, (0.9834, 0.9654, 0.9959, 0.1639, 0.5992, 0.6990, 0.9940, 0.7715)),
            PaperRow("Magic141 (13B)", 50, (0.9677, 0.9607, 0.9936, 0.7704, 0.5892, 0.6906, 0.9895, 0.8516)),
            PaperRow("MagicDistillation", 4, (0.9659, 0.9374, 0.9881, 0.9935, 0.5782, 0.7122, 0.9727, 0.8782)),
        ),
    ),
    PaperTable(
        "MagicDistillation, Table 3: the general I2V-VBench",
        WITHOUT_FLICKERING,
        (
            PaperRow("CogVideoX-I2V-SAT", 100, (0.9767, 0.9547, 0.9835, 0.3651, 0.5976, 0.6764, 0.7590)),
            PaperRow("I2Vgen-XL", 100, (0.9752, 0.9636, 0.9831, 0.2496, 0.6533, 0.6985, 0.7538)),
            PaperRow("SEINE-512x320", 100, (0.9657, 0.9420, 0.9668, 0.3431, 0.5842, 0.7097, 0.7519)),
            PaperRow("VideoCrafter-I2V", 100, (0.9117, 0.9786, 0.9800, 0.2260, 0.6078, 0.7168, 0.7368)),
            PaperRow("SVD-XT-1.0", 100, (0.9752, 0.9552, 0.9809, 0.5236, 0.6015, 0.6980, 0.7890)),
            PaperRow("Step-Video-TI2V", 100, (0.9550, 0.9602, 0.9924, 0.4878, 0.6299, 0.7044, 0.7882)),
            PaperRow("MagicDistillation", 4, (0.9512, 0.9006, 0.9766, 0.9840, 0.5955, 0.6949, 0.8505)),
        ),
        "/general",
    ),
    PaperTable(
        "MagicDistillation, Table 4: VFHQ",
        SETS,
        (
            PaperRow("Euler", 28, (31.16, 170.07)),
            PaperRow("Euler", 4, (39.06, 325.08)),
            PaperRow("LCM", 4, (76.63, 598.99)),
            PaperRow("DMD", 4, (38.41, 285.95)),
            PaperRow("DMD2", 4, (47.49, 249.22)),
            PaperRow(W2S, 4, (32.37, 163.40)),
            PaperRow(SUPERVISED, 4, (31.10, 239.28)),
        ),
        "/vfhq",
    ),
    PaperTable(
        "MagicDistillation, Table 5: HDTF",
        SETS,
        (
            PaperRow("Euler", 28, (37.75, 456.39)),
            PaperRow("Euler", 4, (66.79, 1051.29)),
            PaperRow("LCM", 4, (79.46, 1600.59)),
            PaperRow("DMD", 4, (58.85, 364.85)),
            PaperRow("DMD2", 4, (31.93, 246.78)),
            PaperRow(W2S, 4, (24.90, 233.80)),
            PaperRow(SUPERVISED, 4, (21.92, 240.02)),
        ),
        "/hdtf",
    ),
    PaperTable(
        "MagicDistillation, Table 6: Celeb-V",
        SETS,
        (
            PaperRow("Euler", 28, (72.38, 698.52)),
            PaperRow("Euler", 4, (110.17, 1042.60)),
            PaperRow("LCM", 4, (107.50, 744.96)),
            PaperRow("DMD", 4, (72.69, 661.75)),
            PaperRow("DMD2", 4, (104.84, 682.64)),
            PaperRow(W2S, 4, (60.85, 542.72)),
            PaperRow(SUPERVISED, 4, (58.71, 695.65)),
        ),
        "/celebv",
    ),
    PaperTable(
        "MagicDistillation, Table 7: portraits from text and image",
        VBENCH,
        (
            PaperRow("Euler", 28, (0.9274, 0.9397, 0.9953, 0.2448, 0.5687, 0.6671, 0.9935, 0.7623)),
            PaperRow("Euler", 4, (0.9803, 0.8593, 0.9965, 0.0034, 0.4440, 0.3693, 0.9972, 0.6642)),
            PaperRow(
                "MagicDistillation w/ reg. loss", 4, (0.9807, 0.9777, 0.9951, 0.0620, 0.5979, 0.7110, 0.9974, 0.7602)
            ),
        ),
        "/text",
    ),
    PaperTable(
        "Magic 1-For-1, Table 1: portraits from text and image",
        VBENCH,
        (
            PaperRow("Euler", 56, (0.9804, 0.9603, 0.9954, 0.2103, 0.5884, 0.6896, 0.9937, 0.7740)),
            PaperRow("Euler", 28, (0.9274, 0.9397, 0.9953, 0.2448, 0.5687, 0.6671, 0.9935, 0.7623)),
            PaperRow("Euler", 16, (0.9750, 0.9366, 0.9957, 0.1241, 0.5590, 0.6238, 0.9946, 0.7441)),
            PaperRow("Euler", 8, (0.9787, 0.9000, 0.9962, 0.0068, 0.4994, 0.5013, 0.9961, 0.6969)),
            PaperRow("DMD2", 8, (0.9677, 0.9634, 0.9945, 0.3207, 0.5993, 0.7125, 0.9921, 0.7928)),
            PaperRow("Euler", 4, (0.9803, 0.8593, 0.9965, 0.0034, 0.4440, 0.3693, 0.9972, 0.6642)),
            PaperRow("DMD2", 4, (0.9812, 0.9762, 0.9934, 0.4123, 0.6123, 0.7234, 0.9950, 0.8134)),
        ),
        "/magic141",
    ),
)


def papers_tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables as Markdown.

    Args:
        results: results of `magicdistill eval` by the keys of `OURS`; a missing one gives empty rows.
    """
    lines: list[str] = []
    for table in TABLES:
        lines += [
            f"### {table.title}",
            "",
            f"| method | steps | {' | '.join(TITLES[name] for name in table.columns)} |",
        ]
        lines.append("|---" * (len(table.columns) + 2) + "|")
        for row in table.rows:
            digits = 2 if table.columns == SETS else 4
            values = " | ".join(f"{value:.{digits}f}" for value in row.values)
            lines.append(f"| {row.method} | {row.steps} | {values} |")
            if row.name is not None:
                lines += [_ours(table, f"{row.name}{table.key}", key, row, results) for key in OURS]
        lines.append("")
    return "\n".join(lines)


def _ours(table: PaperTable, name: str, key: str, row: PaperRow, results: Mapping[str, Mapping[str, Any]]) -> str:
    system = results.get(key, {}).get("systems", {}).get(name)
    columns = [Column(column, column, digits=2 if table.columns == SETS else 4) for column in table.columns]
    cells = [NOT_RUN if system is None else cell(system, column) for column in columns]
    shown = " | ".join("" if text == NOT_RUN else text for text in cells)
    return f"| *{OURS[key]}*: `{name}` | {row.steps} | {shown} |"


def write_papers_page(docs: Path = DOCS) -> None:
    """Write the tables into the page, between their marks.

    Args:
        docs: the folder of the documentation.

    Raises:
        ValueError: if the page has no marks.
    """
    results = {}
    for key in OURS:
        path = docs / "results" / "evaluation" / f"{key}.json"
        if path.is_file():
            results[key] = json.loads(path.read_text(encoding="utf-8"))
    page = docs / "evaluation.md"
    text = page.read_text(encoding="utf-8")
    text = _between(text, "networks", "\n".join(network_lines()))
    write_text(page, _between(text, "papers' tables", papers_tables(results).rstrip()))


def _between(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"The page needs the lines {begin} and {end}. Tables are written between them.")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


if __name__ == "__main__":
    write_papers_page()
