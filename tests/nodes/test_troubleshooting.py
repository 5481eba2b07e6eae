"""The page of error messages quotes messages that exist, and every link in the documentation leads somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def source_texts() -> str:
    """Every text in the code of the nodes and the core, f-strings with their values taken out."""
    texts = []
    for package in ("nodes", "magicdistill_core"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return "\n".join(texts)


def quoted() -> list[str]:
    """The messages that the page explains."""
    return [message for line in PAGE.read_text().splitlines() for message in re.findall(r"\*\*`([^`]+)`\*\*", line)]


def test_page_goes_through_the_likely_messages() -> None:
    assert len(quoted()) >= 40
    assert len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_message_exists(message: str) -> None:
    parts = [re.escape(part.strip(" ,")) for part in message.removeprefix("Note:").split("…") if part.strip(" :,.()")]
    assert parts
    assert re.search(r"[^\n]*?".join(parts), SOURCE), message


SOURCE = source_texts()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    def slug(heading: str) -> str:
        return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")

    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = (page.parent / path) if path else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M) if anchor and target.is_file() else []
        if not target.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(link)
    assert not broken
