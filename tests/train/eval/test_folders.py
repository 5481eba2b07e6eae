from pathlib import Path

import pytest

from magicdistill_core.errors import ConfigError
from train.eval.folders import parse_systems, read_systems


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    touch(*(tmp_path / "made" / name for name in ("anna-0.mp4", "anna-1.mp4", "ben.mp4", "sub/cleo.mp4", "dora.mp4")))
    touch(*(tmp_path / "images" / name for name in ("anna.png", "ben.JPG", "sub/cleo.png")))
    touch(tmp_path / "real" / "ben.mov")
    return tmp_path


def test_start_images_and_references_belong_by_name(folders: Path) -> None:
    (system,) = read_systems({"made": folders / "made"}, folders / "images", folders / "real")
    images = {item.name: None if item.image is None else item.image.name for item in system.items}
    assert images == {
        "anna-0.mp4": "anna.png",
        "anna-1.mp4": "anna.png",
        "ben.mp4": "ben.JPG",
        "dora.mp4": None,
        "sub/cleo.mp4": "cleo.png",
    }
    assert {item.name for item in system.items if item.reference is not None} == {"ben.mp4"}
    assert len({item.start for item in system.items}) == 4  # both videos of anna share a start
    assert any("start image matches 1 of 5 videos (dora.mp4)" in warning for warning in system.warnings)
    assert any("no reference matches 4 of 5" in warning for warning in system.warnings)


def test_a_table_states_image_and_reference(folders: Path) -> None:
    table = folders / "table.csv"
    table.write_text("video,image,reference\ndora.mp4,images/ben.JPG,real/ben.mov\n")
    (system,) = read_systems({"made": folders / "made"}, table, None)
    dora = next(item for item in system.items if item.name == "dora.mp4")
    assert dora.image == folders / "images" / "ben.JPG"
    assert dora.reference == folders / "real" / "ben.mov"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,picture\na.mp4,a.png\n", "columns video and image"),
        ("video,image\na.mp4,\n", "Line 2"),
        ("video,image\na.mp4,absent.png\n", "absent.png"),
        ("", "columns video and image"),
    ],
)
def test_unusable_tables_are_refused(folders: Path, text: str, message: str) -> None:
    table = folders / "table.csv"
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_systems({"made": folders / "made"}, table, None)


def test_folders_have_names(tmp_path: Path) -> None:
    assert parse_systems(["a/b", "teacher=c"]) == {"b": Path("a/b"), "teacher": Path("c")}
    for bad in ([], ["x/same", "y/same"]):
        with pytest.raises(ConfigError):
            parse_systems(bad)


def test_a_folder_without_images_is_refused(folders: Path) -> None:
    with pytest.raises(ConfigError, match="holds no image"):
        read_systems({"made": folders / "made"}, folders / "real", None)
