import pytest

from magicdistill_core.errors import VideoError
from magicdistill_core.long_video.texts import numbered_lines, seed_lines, spread


def test_the_last_prompt_is_repeated() -> None:
    assert spread(numbered_lines("a\n b \n\n"), 4, "prompts") == ["a", "b", "b", "b"]
    assert numbered_lines(" \n") == []
    assert spread(["x", "y"], 2, "captions") == ["x", "y"]


def test_an_empty_line_is_named() -> None:
    with pytest.raises(VideoError, match=r"Line 2 .* line 3"):
        numbered_lines("a\n\nc")


def test_a_prompt_without_a_segment_is_named() -> None:
    with pytest.raises(VideoError, match=r"3 prompts, but the video has 2 segments: number 3 \('c'\)"):
        spread(["a", "b", "c"], 2, "prompts")


def test_seeds_are_read() -> None:
    assert seed_lines(["3: 42", "", "1=7", f"2 : {2**64 - 1}"], 3) == {2: 42, 0: 7, 1: 2**64 - 1}


@pytest.mark.parametrize("line", ["3", "x: 4", "1: -4", "1: 4.5", f"1: {2**64}", ":", "1:"])
def test_other_lines_are_named(line: str) -> None:
    with pytest.raises(VideoError, match="seed of a segment"):
        seed_lines([line], 3)


@pytest.mark.parametrize(("lines", "problem"), [(["4: 1"], "has 3"), (["0: 1"], "has 3"), (["2: 1", "2: 5"], "twice")])
def test_segments_that_cannot_be_meant_are_refused(lines: list[str], problem: str) -> None:
    with pytest.raises(VideoError, match=problem):
        seed_lines(lines, 3)
