"""Skipped videos are counted by reason."""

from train.data.skipped import by_reason


def test_reasons_that_differ_in_names_and_numbers_are_one() -> None:
    skipped = {f"x/{number}.mp4": f"/in/x/{number}.mp4 is too short: it has {number} frames." for number in range(7)}
    skipped["empty.mp4"] = "/in/empty.mp4 is empty (0 bytes)."
    short, empty = by_reason(skipped)
    assert short.startswith("7 videos (x/0.mp4, x/1.mp4, x/2.mp4 and 4 more): /in/x/0.mp4 is too short")
    assert empty == "1 video (empty.mp4): /in/empty.mp4 is empty (0 bytes)."


def test_names_with_special_signs_are_names() -> None:
    skipped = {name: f"/my in/{name} is empty." for name in ("a (1).mp4", "b+[lora].mp4", "12:30.mp4")}
    assert len(by_reason(skipped)) == 1
    assert by_reason({}) == []
