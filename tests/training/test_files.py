"""Where data are, and files that appear whole."""

import pytest

from training import files
from training.errors import UserError


def test_folder_by_argument_then_environment_then_none(tmp_path, monkeypatch):
    (tmp_path / "scitldr").mkdir()
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path))
    assert files.data_directory("", "tldr", "scitldr") == tmp_path / "scitldr"
    assert files.data_directory(str(tmp_path), "tldr") == tmp_path and files.data_directory("toy", "scitldr") is None
    with pytest.raises(UserError, match=f"QUINTET_DATA is {tmp_path}, which has no folder imdb or films"):
        files.data_directory("", "imdb", "films")
    with pytest.raises(UserError, match=r"no data folder /no/such"):
        files.data_directory("/no/such", "imdb")
    monkeypatch.delenv("QUINTET_DATA")
    assert files.data_directory("", "imdb") is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.replace(path, "1")
    files.replace(path, b"2")
    assert path.read_text() == "2"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        files.replace(tmp_path / "folder", "3")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "folder"]  # no draft is left
