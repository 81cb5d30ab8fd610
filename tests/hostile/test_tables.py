"""Hostile tables, label tables, class files, dictionaries and split lists: each is read correctly or refused in one line."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from nadpipe.cli import main
from nadpipe.config import check
from nadpipe.data.classes import read_class_file
from nadpipe.data.dictionaries import read_dictionary
from nadpipe.data.labels import attribute_columns
from nadpipe.data.layouts import LAYOUTS, Source
from nadpipe.data.tables import add_labels, read_table
from nadpipe.errors import BAD_INPUT, NadpipeError
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet

HUGE = "x" * 200_000  # over the limit of the csv module
BINARY = bytes(range(256)) * 4
UNREADABLE = {  # content of a file that is neither a table nor a list of texts
    "utf-16": "path\na.png\n".encode("utf-16"),
    "latin-1": "path,group\na.png,Köln\n".encode("latin-1"),
    "surrogate": "path\n\ud800.png\n".encode("utf-8", "surrogatepass"),
    "nul": b"path,group\na.png,x\0y\n",
    "binary": BINARY,
    "only nul": b"\0" * 100,
}
BROKEN = {  # a CSV file of which a reader would have to guess the meaning
    "empty": b"",
    "empty lines": b"\n\n\r\n",
    "only a mark": b"\xef\xbb\xbf",
    "short row": b"path,group\na.png,1\nb.png\n",
    "long row": b"path,group\na.png,1,2\n",
    "longer first row": b"path,group\na.png,1,2\nb.png,1,2\n",
    "repeated column": b"path,group,group\na.png,1,2\n",
    "open quote": b'path,group\na.png,"1\nb.png,2\n',
    "text after a quote": b'path,group\na.png,"1"2\n',
    "huge cell": f"path,group\na.png,{HUGE}\n".encode(),
    "huge header": f"path,{HUGE}\na.png,1\n".encode(),
    "100,000 columns": (",".join(["path", *map(str, range(100_000))]) + "\n").encode(),
}


def odd_file(folder, kind, suffix):
    """Return a path at which there is no ordinary file. A reader of the pipe would wait forever."""
    path = folder / f"t{suffix}"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "broken link":
        path.symlink_to(folder / "none")
    elif kind == "loop of links":
        path.symlink_to(path)
    elif kind == "long name":
        path = folder / f"{'a' * 300}{suffix}"
    return path


ODD = ["folder", "pipe", "broken link", "loop of links", "long name", "missing"]
READERS = {
    "table": (read_table, ".csv"),
    "parquet": (read_table, ".parquet"),
    "labels": (lambda path: add_labels(pd.DataFrame({"path": ["a.png"]}), path), ".csv"),
    "class table": (read_class_file, ".csv"),
    "class list": (read_class_file, ".txt"),
    "dictionary": (lambda path: read_dictionary(str(path)), ".txt"),
}


def refusal(reader, path):
    """Return the message with which a file is refused, after checking its form."""
    with pytest.raises(NadpipeError) as error:
        reader(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "; " in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 2000
    return message


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_are_no_text_are_refused(tmp_path, tally, kind, name):
    reader, suffix = READERS[kind]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(UNREADABLE[name])
    refusal(reader, path)
    tally("tables that are no text", True)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("odd", ODD)
def test_paths_without_an_ordinary_file_are_refused(tmp_path, tally, kind, odd):
    reader, suffix = READERS[kind]
    assert "not a readable" in refusal(reader, odd_file(tmp_path, odd, suffix))
    tally("tables that are no files", True)


@pytest.mark.parametrize("kind", ["table", "labels", "class table"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_csv_files_are_refused(tmp_path, tally, kind, name):
    path = tmp_path / "t.csv"
    path.write_bytes(BROKEN[name])
    refusal(READERS[kind][0], path)
    tally("broken CSV files", True)


def parquet(**columns):
    return pa.table(columns)


BAD_PARQUET = {
    "lists": parquet(path=[["a.png"]]),
    "bytes": parquet(path=[b"a.png"]),
    "structures": parquet(path=[{"a": 1}]),
    "no rows": parquet(path=pa.array([], pa.string())),
    "no columns": pa.table({}),
    "null path": parquet(path=pa.array([None], pa.string())),
    "all null": parquet(path=pa.nulls(2)),
    "repeated column": pa.Table.from_arrays([pa.array(["a.png"]), pa.array(["b.png"])], names=["path", "path"]),
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_unusable_parquet_tables_are_refused(tmp_path, tally, name):
    pq.write_table(BAD_PARQUET[name], tmp_path / "t.parquet")
    refusal(read_table, tmp_path / "t.parquet")
    tally("broken Parquet tables", True)


@pytest.mark.parametrize("cut", [0, 3, 10, 50, 200])
def test_damaged_parquet_tables_are_refused(tmp_path, tally, cut):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"path": ["a.png", "b.png"]}).to_parquet(path)
    content = path.read_bytes()
    path.write_bytes(content[:cut] + b"\xff" * 8 + content[cut + 8 :] if cut else content[:-20])
    refusal(read_table, path)
    tally("broken Parquet tables", True)


GOOD = {  # content, groups
    "1.10 and 1.1": ("path,group\na,1.10\nb,1.1\n", ["1.10", "1.1"]),
    "1e3 and 1000": ("path,group\na,1e3\nb,1000\n", ["1e3", "1000"]),
    "01 and 1": ("path,group\na,01\nb,1\n", ["01", "1"]),
    "17 digits": ("path,group\na,12345678901234567\nb,12345678901234568\n", ["12345678901234567", "12345678901234568"]),
    "NA and None": ("path,group\na,NA\nb,None\nc,nan\nd,null\n", ["NA", "None", "nan", "null"]),
    "True and inf": ("path,group\na,True\nb,inf\nc,-0\n", ["True", "inf", "-0"]),
    "missing": ("path,group\na,\nb,2018\n", [None, "2018"]),
    "quoted empty": ('path,group\na,""\nb,"2018"\n', [None, "2018"]),
    "spaces": ("path,group\na, x\nb,x\nc,  \n", [" x", "x", "  "]),
    "byte order mark": ("\ufeffpath,group\na,x\n", ["x"]),
    "old line ends": ("path,group\ra,x\rb,y\r", ["x", "y"]),
    "mixed line ends": ("path,group\r\na,x\nb,y\r\n\r\n", ["x", "y"]),
    "no last line end": ("path,group\na,x", ["x"]),
    "quotes, commas and lines": ('path,group\na,"x, ""y"""\nb,"two\nlines"\n', ['x, "y"', "two\nlines"]),
    "a quote in a word": ('path,group\na,5" wide\n', ['5" wide']),
    "a formula": ("path,group\na,=1+1\nb,@x\nc,-2+3\n", ["=1+1", "@x", "-2+3"]),
    "escapes": ("path,group\na,\x1b[31m\nb,\u202e\n", ["\x1b[31m", "\u202e"]),
    "unicode": ("path,group\na,Köln\nb,Ko\u0308ln\nc,京都\n", ["Köln", "Ko\u0308ln", "京都"]),
    "html": ("path,group\na,<script>\nb,&amp;\n", ["<script>", "&amp;"]),
    "nameless column": (",path,group\n0,a,x\n1,b,y\n", ["x", "y"]),
    "words like options": ("path,group\na,--help\nb,{set}\n", ["--help", "{set}"]),
    "300 columns": (f"path,group,{','.join(f'c{i}' for i in range(300))}\na,x{',1' * 300}\n", ["x"]),
}


@pytest.mark.parametrize("name", GOOD)
def test_groups_and_labels_are_text_as_written(tmp_path, tally, name):
    content, groups = GOOD[name]
    (tmp_path / "t.csv").write_bytes(content.encode())
    rows = read_table(tmp_path / "t.csv", group_column="group", label_column="group")
    for column in ("group", "label"):
        assert [None if pd.isna(value) else value for value in rows[column]] == groups
    tally("tables with unusual texts", False)


PATHS = ["001", "1", "1.0", "./dot", "../up", "NA", "a b", "ü", "-x", "a\tb", "a'\"b", "$HOME", "*", "two\nlines", "~", "{x}"]


def test_paths_are_text_as_written(tmp_path, tally):
    pd.DataFrame({"path": [*PATHS, "/absolute/001"]}).to_csv(tmp_path / "t.csv", index=False)
    expected = [str(tmp_path / path) for path in PATHS] + ["/absolute/001"]
    assert read_table(tmp_path / "t.csv")["path"].tolist() == expected
    pd.DataFrame({"path": [*PATHS, "/absolute/001"]}).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["path"].tolist() == expected
    for _ in PATHS:
        tally("tables with unusual texts", False)


def test_whole_numbers_of_parquet_stay_whole(tmp_path):
    table = parquet(path=["a", "b"], group=pa.array([2018, None]), label=pa.array([10**16 + 1, 1]))
    pq.write_table(table, tmp_path / "t.parquet")
    rows = read_table(tmp_path / "t.parquet", group_column="group", label_column="label")
    assert rows["group"].tolist()[0] == "2018"
    assert rows["group"].isna().tolist() == [False, True]
    assert rows["label"].tolist() == ["10000000000000001", "1"]


def test_other_columns_are_numbers_only_if_nothing_is_lost(tmp_path):
    columns = {
        "bit": ["0", "1"],
        "whole": ["7", "-12"],
        "some": ["7", ""],
        "fraction": ["0.5", "1e-3"],
        "truth": ["True", "False"],
        "padded": ["01", "2"],
        "long": ["12345678901234567890", "1"],
        "mixed": ["1", "NA"],
    }
    pd.DataFrame({"path": ["a", "b"], **columns}).to_csv(tmp_path / "t.csv", index=False)
    rows = read_table(tmp_path / "t.csv")
    assert rows["bit"].tolist() == [0, 1]
    assert rows["whole"].tolist() == [7, -12]
    assert rows["some"].tolist()[0] == 7
    assert rows["fraction"].tolist() == [0.5, 0.001]
    assert rows["truth"].tolist() == [True, False]
    for name in ("padded", "long", "mixed"):
        assert rows[name].tolist() == columns[name]
    assert attribute_columns(rows) == ["bit", "truth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,group\n,x\n", "column path is empty in row 1"),
        ("path,group\na,x\n,y\n", "column path is empty in row 2"),
        ("path,group\n", "no rows"),
        ("Path,group\na,x\n", "no column path"),
        ("path;group\na;x\n", "no column path"),
        ("path,group,source_path,path_2\n", "no rows"),
        ("path,group,image_id,source_image_id\na,x,1,2\n", "source_image_id"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, tally, content, message):
    (tmp_path / "t.csv").write_text(content)
    assert message in refusal(lambda path: read_table(path, group_column="group"), tmp_path / "t.csv")
    tally("broken CSV files", True)


# ------------------------------------------------------------------------------------------------------------- labels


IMAGE_PATHS = ["/data/s1/a.png", "/data/s2/a.png", "/data/s1/b.v2.jpg", "/data/001.jpg"]


def labels(tmp_path, content):
    (tmp_path / "l.csv").write_text(content)
    return add_labels(pd.DataFrame({"path": IMAGE_PATHS, "group": "x"}), tmp_path / "l.csv")


def test_labels_are_joined_by_as_many_folders_as_needed(tmp_path):
    joined = labels(tmp_path, "file,red\ns2/a,1\ns1/a.png,0\nb.v2,1\n001.png,0\n")
    assert joined["red"].tolist() == [0, 1, 1, 0]
    joined = labels(tmp_path, f"file,red\n{IMAGE_PATHS[3]},1\n{IMAGE_PATHS[1]},0\n./s1/a,1\nb.v2.jpg,0\nunused,1\n")
    assert joined["red"].tolist() == [1, 0, 0, 1]


def test_words_are_text_as_written(tmp_path):
    joined = labels(tmp_path, "file,colour\ns1/a,NA\ns2/a,None\nb.v2,\n001,01 x\n")
    assert {name: joined[name].tolist() for name in joined.columns[2:]} == {
        "01 x": [0, 0, 0, 1],
        "NA": [1, 0, 0, 0],
        "None": [0, 1, 0, 0],
    }


REST = "b.v2,1\n001,1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"file,red\na,1\n{REST}", "a fits /data/s1/a.png and /data/s2/a.png"),
        (f"file,red\na.png,1\n{REST}", "a.png fits"),
        (f"file,red\ns1/a,1\ns1/a.png,1\ns2/a,1\n{REST}", "s1/a.png and s1/a both fit"),
        (f"file,red\ns1/a,1\ns1/a,1\ns2/a,1\n{REST}", "lists s1/a twice"),
        (f"file,red\ns1/a,1\n./s1/a,1\ns2/a,1\n{REST}", "lists s1/a twice"),
        (f"file,red\ns1/a,1\n{REST}", "1 images are missing, first a"),
        (f"file,red\ns1/a,1\ns2/a,1\nb,1\n{REST[7:]}", "images are missing"),
        (f"file,red\nt/s1/a,1\ns2/a,1\n{REST}", "images are missing"),
        ("file,red\n1,1\ns1/a,1\ns2/a,1\nb.v2,1\n", "images are missing, first 001"),
        (f"file,red\ns1/a,2\ns2/a,1\n{REST}", "numbers other than 0 and 1"),
        (f"file,red\ns1/a,\ns2/a,1\n{REST}", "numbers other than 0 and 1"),
        (f"file,group\ns1/a,1\ns2/a,1\n{REST}", "'group'"),
        ("file,one,two\ns1/a,red,x\ns2/a,y,red\nb.v2,x,x\n001,x,x\n", "is in two columns"),
        ("file,one\ns1/a,path\ns2/a,x\nb.v2,x\n001,x\n", "'path'"),
        ("file,red\n,1\n", "images are missing"),
        ("file\n", "images are missing"),
    ],
)
def test_ambiguous_labels_are_refused(tmp_path, tally, content, message):
    (tmp_path / "l.csv").write_text(content)
    rows = pd.DataFrame({"path": IMAGE_PATHS, "group": "x"})
    assert message in refusal(lambda path: add_labels(rows, path), tmp_path / "l.csv")
    tally("label tables", True)


# ------------------------------------------------------------------------------------- classes, dictionaries and splits


@pytest.mark.parametrize(
    "content",
    [
        "names,values\ncat,-1\ndog,1\n",
        "names,values\ncat,1.5\ndog,1\n",
        "names,values\ncat,99999999999999999999\ndog,1\n",
        f"names,values\ncat,{'9' * 5000}\ndog,1\n",
        "names,values\ncat,٣\ndog,1\n",
        "names,values\ncat,1_0\ndog,1\n",
        "names,red,green,blue\ncat,256,0,0\ndog,0,0,1\n",
        "names,red,green,blue\ncat,-1,0,0\ndog,0,0,1\n",
        "names,title\ncat,two\x1blines\ndog,b\n",
        'names,title\ncat,"two\nlines"\ndog,b\n',
        f"names\n{'x' * 2000}\ndog\n",
        "names\ncat\n,\n",
        "names\n" + "".join(f"c{index}\n" for index in range(300)),
        "Names\ncat\ndog\n",
        "names\n: cat\ndog\n",
    ],
)
def test_unusable_class_files_are_refused(tmp_path, tally, content):
    (tmp_path / "c.csv").write_text(content)
    refusal(read_class_file, tmp_path / "c.csv")
    tally("class files", True)


def test_a_class_without_a_title_has_the_first_name(tmp_path):
    (tmp_path / "c.csv").write_bytes('\ufefftitle,names\n,"NA, none"\nNone,null\n'.encode())
    assert read_class_file(tmp_path / "c.csv").titles == ("NA", "None")
    assert read_class_file(tmp_path / "c.csv").names == (("NA", "none"), ("null",))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf\n", b"a\x1bb\n", b"a\x00\n", b"x" * 1001, b"\xff\xfea\0"])
def test_unusable_dictionaries_are_refused(tmp_path, tally, content):
    (tmp_path / "d.txt").write_bytes(content)
    refusal(lambda path: read_dictionary(str(path)), tmp_path / "d.txt")
    tally("dictionaries", True)


@pytest.mark.parametrize("content", [b"a\n../../secret\n", b"\xff\n", b"/absolute\n", b"a\0\n"])
def test_unusable_split_lists_are_refused(tmp_path, tally, content):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/s.txt").write_bytes(content)
    with pytest.raises(NadpipeError, match=r"splits/s\.txt") as error:
        LAYOUTS["folder"].list_images(Source(tmp_path, "s"))
    assert "\n" not in str(error.value)
    tally("split lists", True)


# --------------------------------------------------------------------------------------------- from the file to the end


@pytest.mark.parametrize("name", [*UNREADABLE, *BROKEN])
def test_the_config_check_refuses_a_table_with_its_key(tmp_path, tally, name):
    (tmp_path / "t.csv").write_bytes((UNREADABLE | BROKEN)[name])
    discovery = {"layout": "table", "path": str(tmp_path / "t.csv"), "group_column": "group"}
    with pytest.raises(NadpipeError) as error:
        check({"model": {"architecture": "RN50", "pretrained": "openai"}, "datasets": {"discovery": discovery}})
        read_table(tmp_path / "t.csv", group_column="group")  # the check reads only the header
    assert str(tmp_path / "t.csv") in str(error.value)
    assert "\n" not in str(error.value)
    tally("tables in the config", True)


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "/" * 5000 + "x", "a/" * 3000])
@pytest.mark.parametrize("key", ["path", "labels", "classes", "dictionary", "architecture", "pretrained"])
def test_the_config_check_refuses_impossible_paths(tally, key, path):
    config = {
        "model": {"architecture": "RN50", "pretrained": "openai"},
        "datasets": {"discovery": {"layout": "table", "path": "."}},
    }
    section = {"dictionary": "text", "architecture": "model", "pretrained": "model"}.get(key)
    suffix = {"architecture": ".json", "pretrained": ".pt"}.get(key, "")
    (config.setdefault(section, {}) if section else config["datasets"]["discovery"])[key] = path + suffix
    with pytest.raises(NadpipeError) as error:
        check(config)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    assert f"{key}: " in str(error.value)
    tally("tables in the config", True)


def test_a_manifest_does_not_differ_between_runs(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,group\nbad.png,01\na.png,NA\n")
    contents = []
    for _ in range(2):
        keys = ["--layout", "table", "--path", str(tmp_path / "t.csv"), "--group-column", "group", "--bad-images", "skip"]
        assert main(["index-images", *keys, "--output", str(tmp_path / "i.parquet")]) == 0
        contents.append((tmp_path / "i.parquet").read_bytes())
    assert contents[0] == contents[1]
    problems = read_parquet(tmp_path / "i.parquet", IMAGES)["problem"].dropna().tolist()
    assert len(problems) == 1
    assert "0x" not in problems[0]
    assert read_images(tmp_path / "i.parquet")["group"].tolist() == ["NA"]


def test_path_001_is_not_file_1(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "1", "PNG")
    (tmp_path / "t.csv").write_text("path\n001\n")
    arguments = [
        "index-images",
        "--layout",
        "table",
        "--path",
        str(tmp_path / "t.csv"),
        "--output",
        str(tmp_path / "i.parquet"),
    ]
    assert main(arguments) == BAD_INPUT
    assert f"{tmp_path / '001'}: no such image" in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"\xff.png", b"a\xed\xa0\x80.png"])
def test_file_names_that_are_no_text_are_refused(tmp_path, tally, name):
    Image.new("RGB", (8, 8)).save(tmp_path / "a", "PNG")
    (tmp_path / "a").rename(tmp_path / os.fsdecode(name))
    with pytest.raises(NadpipeError) as error:
        LAYOUTS["tree"].list_images(Source(tmp_path))
    assert "not UTF-8" in str(error.value)
    assert str(error.value).isprintable()
    tally("file names", True)


@pytest.mark.parametrize("name", ["a\x1b[31m.png", "two\nlines.png", "=1.png", "\u202egnp.png", "-x.png", "a,b.png", " .png"])
def test_unusual_file_names_are_read(tmp_path, tally, name):
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    arguments = ["index-images", "--layout", "tree", "--path", str(tmp_path), "--output", str(tmp_path / "i.parquet")]
    assert main(arguments) == 0
    assert read_images(tmp_path / "i.parquet")["path"].tolist() == [str(tmp_path / name)]
    tally("file names", False)


def test_yaml_keeps_texts_that_look_like_numbers(tmp_path, monkeypatch):
    """The user must quote them, as for any YAML file; without quotes the check says so."""
    monkeypatch.chdir(tmp_path)
    for written, accepted in (("'01'", True), ("1.10", False)):
        config = yaml.safe_load(f"shift: {{concepts: [{written}]}}\nmodel: {{architecture: RN50, pretrained: openai}}\n")
        config["datasets"] = {"discovery": {"layout": "tree", "path": "."}}
        if accepted:
            assert check(config)["shift"]["concepts"] == ["01"]
        else:
            with pytest.raises(NadpipeError, match=r"shift\.concepts\.0: 1\.1 is invalid"):
                check(config)


def test_a_relative_path_is_relative_to_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("path\na.png\n")
    assert read_table(Path("t.csv"))["path"].tolist() == ["a.png"]
