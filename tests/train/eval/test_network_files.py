import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from train.eval import network_files
from train.eval.measures import all_measures
from train.eval.network_files import NETWORKS, NetworkFolder, NotRunError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file of LPIPS in a subfolder, whose contents are a few bytes."""
    path = tmp_path / "networks" / "deep" / NETWORKS["lpips"].files[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    known = replace(NETWORKS["lpips"], sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(network_files.NETWORKS, "lpips", known)
    return tmp_path / "networks"


def test_a_file_is_found_by_name_and_contents(folder: Path) -> None:
    assert NetworkFolder(folder).find("lpips").read_bytes() == b"weights"


def test_a_file_with_other_contents_is_not_used(folder: Path) -> None:
    next(folder.rglob("lpips*")).write_bytes(b"other")
    with pytest.raises(NotRunError, match=f"sha256 {hashlib.sha256(b'other').hexdigest()[:12]}"):
        NetworkFolder(folder).find("lpips")


def test_of_two_files_the_right_one_is_used(folder: Path) -> None:
    (folder / NETWORKS["lpips"].files[0]).write_bytes(b"other")
    assert NetworkFolder(folder).find("lpips").read_bytes() == b"weights"


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_file_is_named(name: str) -> None:
    with pytest.raises(NotRunError, match=r"missing"):
        NetworkFolder(None).find(name)


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(network_files.NETWORKS["lpips"], packages=(("no_such_package", "no-such"),))
    monkeypatch.setitem(network_files.NETWORKS, "lpips", known)
    with pytest.raises(NotRunError, match=r"no_such_package .*install no-such"):
        NetworkFolder(folder).find("lpips")


def test_every_network_of_a_measure_is_in_the_table() -> None:
    needed = {name for measure in all_measures(16) for name in measure.networks}
    assert needed == NETWORKS.keys()
    assert all(len(network.sha256) == 64 for network in NETWORKS.values())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotRunError, match="not a folder"):
        NetworkFolder(tmp_path / "absent")
