"""The page of all settings is the generated one, and every setting is on it with a description."""

from typing import Any, get_args

from train.config.methods import CFGConfig, DiscriminatorConfig, DMD2Config, OneStepConfig, SFTConfig
from train.config.page import PAGE, settings_page
from train.config.run import GuardConfig
from train.config.sections import EmaConfig, Section
from train.config.training import TrainConfig


def sections_of(annotation: Any) -> set[type[Section]]:
    """Every section that a type contains, at any depth."""
    found = {annotation} if isinstance(annotation, type) and issubclass(annotation, Section) else set()
    parts = [field.annotation for section in found for field in section.model_fields.values()]
    return found.union(*(sections_of(part) for part in (*get_args(annotation), *parts)))


def test_every_field_has_a_description() -> None:
    sections = sections_of(TrainConfig)
    assert {CFGConfig, DiscriminatorConfig, DMD2Config, EmaConfig, GuardConfig, OneStepConfig, SFTConfig} <= sections
    missing = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert not missing


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "Run `python -m train.config.page`."


def test_every_field_is_on_the_page() -> None:
    page = settings_page()
    rows = {
        (name, field.description)
        for section in sections_of(TrainConfig)
        for name, field in section.model_fields.items()
        if name != "name"
    }
    missing = [row for row in rows if not any(f"| `{row[0]}` |" in line and row[1] in line for line in _lines(page))]
    assert not missing


def test_limits_and_defaults_are_in_the_rows() -> None:
    page = settings_page()
    for row in (
        "| `updates` | integer >= 1 | *required* |",
        "| `decay` | number > 0, <= 1 | `1` |",
        "| `eps` | number > 0 | `1e-8` |",
        "| `seed` | integer >= -2^63, <= 2^64 - 1 | `0` |",
        "| `betas` | [number >= 0, < 1, number >= 0, < 1] | `[0, 0.999]` |",
        "| `channel_weights` | list of 16, each number > 0 or `null` | `null` |",
        "| `reference_noise` | [number, number >= 0] or `null` | `null` |",
        "| `stage` | `0`, `1`, `2`, `3` | `2` |",
        "| `null_prompt` | path or `null` | `null` |",
        "| `method` | [section](#method) | `w2s` |",
        "| `supervision` | [section](#methodsupervision) | `null` |",
    ):
        assert row in page


def test_each_section_has_one_heading() -> None:
    headings = [line.lstrip("# ") for line in _lines(settings_page()) if line.startswith("##")]
    assert len(set(headings)) == len(headings)
    optimizers = "`generator_optimizer`, `fake_optimizer`, `method.discriminator.optimizer`"
    expected = ["`model`", "`method`", "`method: w2s`", "`method: one_step`", "`method.discriminator`", optimizers]
    assert [heading for heading in headings if heading in expected] == expected


def _lines(page: str) -> list[str]:
    return page.replace("\\|", "|").splitlines()
