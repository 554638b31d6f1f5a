"""Files that are written whole, and what is said where one cannot be."""

import pytest

from nsa_lib.contract.files import write_json, write_text


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    write_json(tmp_path / "a.json", {"loss": float("nan")})
    write_json(tmp_path / "a.json", {"loss": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == '{\n "loss": 1\n}'


def test_where_it_cannot_be_written_the_error_names_the_file_that_was_meant(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, kind in ((tmp_path / "folder", IsADirectoryError), (tmp_path / "gone" / "a.html", FileNotFoundError)):
        with pytest.raises(kind) as refusal:
            write_text(path, "page")
        assert (refusal.value.filename, refusal.value.filename2) == (str(path), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_error_of_another_file_is_left_as_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    with pytest.raises(OSError, match="link"):
        write_text(tmp_path / "link" / "a.html", "page")
