"""The page of error messages explains messages that exist, and every link in the documentation has a target."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
# Words that a message may change without a change of its meaning.
FILLERS = {"this", "that", "these", "which", "with", "more", "than", "holds", "contains", "expected", "note"}


def message_words(text: str) -> set[str]:
    """Return the words of a message that carry its meaning: those of four letters or more, except fillers."""
    return set(re.findall(r"[a-z0-9_]{4,}", text.lower())) - FILLERS


def source_words() -> list[set[str]]:
    """Return the words of every text in the code."""
    texts = []
    for package in ("nodes", "magicdistill_core", "train"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    texts.append(" ".join(str(v.value) for v in node.values if isinstance(v, ast.Constant)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return [message_words(text) for text in texts]


def quoted() -> list[str]:
    """Return the parts of messages that the page quotes."""
    return [message for line in PAGE.read_text().splitlines() for message in re.findall(r"\*\*`([^`]+)`\*\*", line)]


SOURCE = source_words()


def test_page_explains_at_least_40_different_messages() -> None:
    assert len(quoted()) >= 40
    assert len(set(quoted())) == len(quoted())


@pytest.mark.parametrize("message", quoted())
def test_a_message_contains_the_quoted_words(message: str) -> None:
    words = message_words(message)
    assert words
    assert any(words <= text for text in SOURCE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_have_a_target(page: Path) -> None:
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
