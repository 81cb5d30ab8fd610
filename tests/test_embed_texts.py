"""Stage embed_texts on a tiny random model: its cache, and texts that it refuses."""

import json
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import TINY

from nadpipe.errors import NadpipeError
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.index_images import index_images
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.texts import CACHED_TEXTS, TEXT
from nadpipe.store.stamp import Stamp
from nadpipe.store.tables import read_parquet, read_stamp, write_parquet


def test_texts_that_cannot_be_embedded_are_reported(run):
    empty, broken = run.folder / "empty.txt", run.folder / "broken.txt"
    empty.write_text("\n \n")
    broken.write_bytes(b"\xff\xfe\x00")
    for options, message in [
        ({}, "give one of --texts, --dictionary, --classes and --labels"),
        ({"texts": ("a",), "dictionary": str(empty)}, "give one of --texts, --dictionary, --classes and --labels"),
        ({"texts": ("a", "b", "a")}, "--texts: 1 texts are listed twice, first 'a'"),
        ({"dictionary": str(empty)}, r"empty\.txt: no texts"),
        ({"dictionary": str(broken)}, r"broken\.txt: not a readable UTF-8 text file"),
        ({"dictionary": str(run.folder / "none.txt")}, r"none\.txt: not a readable"),
        ({"dictionary": "wordfreq:many"}, "wordfreq:<count>"),
        ({"texts": ("a",), "templates": ("{}", "imagenet")}, "must contain {} once"),
        ({"texts": ("a",), "cache": empty}, r"empty\.txt: .*cache folder"),
        ({"texts": ("a", "very " * 10_000 + "long")}, r"text 'very .*'….* longer than the model's 16 tokens"),
        ({"texts": ("a " * 15,)}, r"longer than the model's 16 tokens"),
    ]:
        with pytest.raises(NadpipeError, match=message) as error:
            embed_texts(output=run.folder / "t.zarr", device="cpu", **run.model, **options)
        assert "\n" not in str(error.value)
        assert not (run.folder / "t.zarr").exists()


def test_labels_and_columns_with_the_same_text_are_embedded_once(run):
    """A 0/1 column may be named like a label, and two columns or two labels may have the same text."""
    columns = {"fish": [0, 1, 0], "red_fox": [1, 0, 0], "red fox": [1, 1, 0], "sky": [0, 0, 1]}
    table, manifest = run.folder / "t.csv", run.folder / "images.parquet"

    def index(*labels):
        run.write_images(np.zeros((3, 64, 64, 3), np.uint8), kind=labels, **columns)
        index_images("table", table, manifest, label_column="kind")

    index("fish", "red_fox", "red  fox")
    embed_texts(output=run.folder / "t.zarr", labels=manifest, device="cpu", **run.model)
    assert open_zarr(run.folder / "t.zarr", TEXT).texts() == ["fish", "red fox", "sky"]
    index("red fox", "red_fox", None)
    with pytest.raises(NadpipeError, match="1 different labels; zero-shot classification needs at least two"):
        embed_texts(output=run.folder / "u.zarr", labels=manifest, device="cpu", **run.model)


@pytest.fixture
def embed(run, monkeypatch):
    """Return a function that embeds texts with a cache, and returns the embeddings and the texts that the model embedded."""
    embedded = []
    module = sys.modules["nadpipe.stages.embed_texts"]
    counted = module.embed_prompts

    def count(model, texts, *rest):
        embedded.extend(texts)
        return counted(model, texts, *rest)

    monkeypatch.setattr(module, "embed_prompts", count)

    def embed(texts=(), cache=run.folder / "cache", **options):
        embedded.clear()
        path = run.folder / "cached.zarr"
        embed_texts(output=path, texts=tuple(texts), cache=cache, device="cpu", **run.model, **options)
        store = open_zarr(path, TEXT)
        assert dict(zip(store.texts(), store["embedding"][:], strict=True)).keys() == set(texts or store.texts())
        return store["embedding"][:], list(embedded)

    return embed


def test_cached_texts_are_not_embedded_again(run, embed, capsys):
    templates = ("a photo of {}", "{}")
    plain, embedded = embed("abc", cache=None, templates=templates)
    assert embedded == ["a", "b", "c"]
    first, embedded = embed("abc", templates=templates)
    assert embedded == ["a", "b", "c"]
    np.testing.assert_array_equal(first, plain)
    files = {path: path.read_bytes() for path in (run.folder / "cache").rglob("*.*")}
    assert [path.suffix for path in files] == [".parquet"]
    capsys.readouterr()
    again, embedded = embed("cab", templates=templates)
    assert embedded == []
    assert "embedding texts, 3 of 3 from the cache" in capsys.readouterr().err
    np.testing.assert_array_equal(again, plain[[2, 0, 1]])
    more, embedded = embed("axcb", templates=templates)
    assert embedded == ["x"]
    assert "embedding texts, 3 of 4 from the cache" in capsys.readouterr().err
    np.testing.assert_array_equal(more[[0, 2, 3]], plain[[0, 2, 1]])
    np.testing.assert_allclose(more, embed("axcb", cache=None, templates=templates)[0], atol=1e-6)
    after = {path: path.read_bytes() for path in (run.folder / "cache").rglob("*.*")}
    assert len(after) == 2
    assert after.items() > files.items()  # a file once written stays as it is
    assert embed("xa", templates=templates)[1] == []


def test_a_named_dictionary_is_cached_text_by_text(run, embed):
    assert len(embed(dictionary="wordfreq:20")[1]) == 20
    embedding, embedded = embed(dictionary="wordfreq:25")
    assert len(embedded) == 5
    np.testing.assert_allclose(embedding, embed(dictionary="wordfreq:25", cache=None)[0], atol=1e-6)
    embed("a", templates=("imagenet-simple",), cache=None)
    simple = open_zarr(run.folder / "cached.zarr", TEXT).attributes["templates"]
    assert len(simple) == 7
    assert "itap of a {}." in simple


def test_another_model_template_set_or_code_shares_nothing(run, embed, monkeypatch):
    embed("ab")
    assert embed("ab", templates=("a photo of {}",))[1] == ["a", "b"]
    assert embed("ab", templates=("a photo of {}", "{}"))[1] == ["a", "b"]
    assert embed("ab", templates=("{}", "a photo of {}"))[1] == ["a", "b"]
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    quick, embedded = embed("ab")
    assert embedded == ["a", "b"]
    np.testing.assert_array_equal(quick, embed("ab")[0])
    (run.folder / "m.json").write_text(json.dumps(TINY))
    exact, embedded = embed("ab")
    assert embedded == []
    assert np.abs(exact - quick).max() > 1e-4
    monkeypatch.setattr(sys.modules["nadpipe.stages.embed_texts"], "code_fingerprint", lambda module: "edited")
    assert embed("ab")[1] == ["a", "b"]


def test_jobs_that_embed_the_same_texts_write_different_files(run):
    files = []
    for name in ("one", "two"):
        cache = run.folder / f"cache of {name}"  # as if neither had seen the other's file yet
        embed_texts(output=run.folder / f"{name}.zarr", texts=("a", "b"), cache=cache, device="cpu", **run.model)
        files += [path.relative_to(cache) for path in cache.rglob("*.parquet")]
    assert len(set(files)) == 2
    assert len({file.parent for file in files}) == 1


def test_a_damaged_or_foreign_file_in_the_cache_is_reported(run, embed):
    embed("ab")
    (file,) = (run.folder / "cache").rglob("*.parquet")
    good = file.read_bytes()
    (run.folder / "m.json").write_text(json.dumps(TINY | {"quick_gelu": True}))
    embed("ab")
    (of_another_model,) = set((run.folder / "cache").rglob("*.parquet")) - {file}
    (run.folder / "m.json").write_text(json.dumps(TINY))
    table, held = read_parquet(file, CACHED_TEXTS), json.loads(pq.read_schema(file).metadata[b"nadpipe"])
    stamp = Stamp(*(held[name] for name in ("model", "architecture", "code")))
    long, wide = table.copy(), table.copy()
    long["embedding"] = [row * 1.1 for row in table["embedding"]]
    wide["embedding"] = [np.append(row, np.float32(0)) for row in table["embedding"]]
    uneven, absent = table.copy(), table.copy()
    uneven["embedding"] = [table["embedding"][0], table["embedding"][1][:-1]]
    absent["embedding"] = [table["embedding"][0], None]
    contents = [good[: len(good) // 2], b"", b"PAR1 no", of_another_model.read_bytes()]
    for broken in (long, wide, uneven, absent):
        write_parquet(run.folder / "broken.parquet", CACHED_TEXTS, broken, stamp)
        contents.append((run.folder / "broken.parquet").read_bytes())
    pd.DataFrame({"text": ["a"]}).to_parquet(run.folder / "foreign.parquet")
    contents.append((run.folder / "foreign.parquet").read_bytes())
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(NadpipeError) as error:
            embed("ab")
        assert str(error.value).startswith(f"{file}: damaged or foreign file in the cache (")
        assert "make it" not in str(error.value)  # by Snakemake, as other artifacts are
        assert "\n" not in str(error.value)
    file.unlink()
    assert embed("ab")[1] == ["a", "b"]


def test_a_cached_embedding_counts_only_for_its_text_and_its_templates(run, embed):
    """A file of unit vectors that passes all other checks can hold the embeddings of other texts."""
    embed(("fish", "star"))
    (file,) = (run.folder / "cache").rglob("*.parquet")
    good, table = file.read_bytes(), read_parquet(file, CACHED_TEXTS)
    stamp = read_stamp(file, CACHED_TEXTS)
    embed(("fish", "star"), templates=("a photo of {}",))
    (of_other_templates,) = set((run.folder / "cache").rglob("*.parquet")) - {file}
    write_parquet(file, CACHED_TEXTS, table.assign(text=table["text"][::-1].tolist()), stamp)
    swapped = file.read_bytes()
    for content in (swapped, of_other_templates.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(NadpipeError, match=r"foreign file in the cache \(embeddings of other texts, models or templates\)"):
            embed(("fish",))
    file.write_bytes(good)
    assert embed(("fish", "star"))[1] == []
