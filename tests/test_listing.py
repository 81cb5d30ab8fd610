"""A quick look at folders and tables on disk."""

import os

import pandas as pd
import pytest

from nadpipe.data.listing import (
    binary_columns,
    column_names,
    count_rows,
    folder_fingerprint,
    list_tree,
    read_columns,
    table_fingerprint,
)
from nadpipe.errors import NadpipeError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_a_tree_is_listed_by_its_images(tmp_path):
    touch(tmp_path, "2024/cat/a.JPG", "2024/dog/b.png", "2025/c.png", "x.png", "b.png", "notes/readme.txt")
    listing = list_tree(tmp_path, (".jpg", ".png"))
    assert (listing.images, listing.outside) == (5, "b.png")
    assert listing.groups == {"2024", "2025"}
    assert listing.labels == {"cat", "dog", "2025"}


def test_a_folder_that_cannot_be_read_is_reported_in_one_line(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with pytest.raises(NadpipeError, match=r"a\.png: is a file; give the folder"):
        list_tree(tmp_path / "a.png", (".png",))
    with pytest.raises(NadpipeError, match=r"gone: folder cannot be read \(No such file or directory\); "):
        folder_fingerprint(tmp_path / "gone")
    monkeypatch.setattr(os, "scandir", refuse)
    for look in (folder_fingerprint, lambda path: list_tree(path, (".png",))):
        with pytest.raises(NadpipeError, match=r"closed: folder cannot be read \(Permission denied\); ") as error:
            look(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_table_has_another_fingerprint_if_a_file_that_it_names_changes(tmp_path, form):
    touch(tmp_path, "images/a.png", "images/b.png", "m.png", "other.png")
    path = tmp_path / f"t.{form}"
    table = pd.DataFrame({"path": ["images/a.png", str(tmp_path / "images/b.png")], "mask": ["m.png", None]})
    table.to_csv(path, index=False) if form == "csv" else table.to_parquet(path)

    def states():
        return table_fingerprint(path, ["path", "mask"]), table_fingerprint(path, ["path"])

    first = states()
    touch(tmp_path, "other.png")
    assert states() == first
    (tmp_path / "m.png").write_text("another mask")
    masked = states()
    assert masked[0] != first[0]
    assert masked[1] == first[1]
    os.utime(tmp_path / "images/a.png", ns=(0, 0))
    touched = states()
    assert all(one != other for one, other in zip(touched, masked, strict=True))
    (tmp_path / "images/b.png").unlink()
    assert all(one != other for one, other in zip(states(), touched, strict=True))


def test_a_csv_is_read_by_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\n"a ""b""",c,d\n1,"x\ny",0\n\n2,,\n', encoding="utf-8-sig")
    assert column_names(path) == ['a "b"', "c", "d"]
    assert count_rows(path) == 2
    assert read_columns(path, ["c", 'a "b"']) == [["x\ny", ""], ["1", "2"]]
    assert binary_columns(path) == []
    with pytest.raises(NadpipeError, match=r't\.csv: no column x; choose one of a "b", c, d'):
        read_columns(path, ["x"])


@pytest.mark.parametrize(
    "content", [b"path,\xff\n1.png,2\n", "path\n1.png\n".encode("utf-16"), b'path\n"' + b"x" * 200_000 + b'"\n', None]
)
def test_an_unreadable_table_is_reported_in_one_line(tmp_path, content):
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"t.{suffix}"
        path.mkdir() if content is None else path.write_bytes(content)
        for look in (count_rows, binary_columns, lambda table: read_columns(table, ["path"])):
            with pytest.raises(NadpipeError, match=rf"t\.{suffix}: not a readable (CSV|Parquet) table.*; correct it") as error:
                look(path)
            assert "\n" not in str(error.value)
