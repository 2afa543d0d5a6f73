"""Files of people: byte-order marks, compression, other encodings, folders that are not there."""

import gzip

import pytest

from training import files
from training.errors import UserError


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_lines_have_numbers_but_neither_ends_nor_mark(tmp_path, start):
    content = start + "dog\té\r\n\n cat ".encode()
    (tmp_path / "a.txt").write_bytes(content)
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        file.write(content)
    for name in ("a.txt", "a.gz"):
        assert list(files.lines(tmp_path / name)) == [(1, "dog\té"), (2, ""), (3, " cat ")]
    assert files.text(tmp_path / "a.txt") == "dog\té\n\n cat "


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nfine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"a\.txt line 3 is not UTF-8 .*at byte 3"):
        list(files.lines(path))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"text" * 99)[:-20])
    (tmp_path / "c.gz").write_bytes(b"text")
    for name, message in (("b.gz", "gzipped"), ("c.gz", "gzipped"), ("none", "No such file"), ("", "Is a directory")):
        with pytest.raises(UserError, match=message):
            list(files.lines(tmp_path / name))


def test_what_cannot_be_written_is_named(tmp_path):
    files.write(tmp_path / "a", ["x", "é"])
    assert (tmp_path / "a").read_bytes() == "x\né\n".encode()
    for place in (tmp_path / "none" / "a", tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*folder that exists"):
            files.write(place, [])
        with pytest.raises(UserError, match=r"cannot write .*folder that exists"):
            files.check_place(place)
    files.check_place(tmp_path / "b")
    assert files.folder(tmp_path / "c" / "d").is_dir()
    with pytest.raises(UserError, match="cannot make the folder"):
        files.folder(tmp_path / "a" / "d")


def test_json_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}')
    assert files.json_object(path, "make it anew") == {"a": 1}
    for text in ("[1]", '{"a": ', "NaN"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"a\.json .*: make it anew$"):
            files.json_object(path, "make it anew")
