"""The library for notebooks: decompositions of images, and the results of a run."""

import json
import subprocess
import sys

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from conftest import TINY, TINY_VIT
from PIL import Image
from safetensors.torch import save_file

import nadpipe
from nadpipe.circuit.readout import write_vectors
from nadpipe.errors import NadpipeError


@pytest.fixture(scope="module", params=["resnet", "vit"])
def model_and_clip(request, tiny_clip, tiny_vit, tmp_path_factory):
    """Return a model loaded by its public name, and open_clip's own."""
    clip, config = (tiny_clip, TINY) if request.param == "resnet" else (tiny_vit, TINY_VIT)
    folder = tmp_path_factory.mktemp("model")
    save_file({name: values.contiguous() for name, values in clip.state_dict().items()}, folder / "w.safetensors")
    (folder / "m.json").write_text(json.dumps(config))
    return nadpipe.load_model(str(folder / "m.json"), str(folder / "w.safetensors"), "cpu"), clip


@pytest.fixture(scope="module")
def photographs():
    """Return random images of different sizes and modes."""
    generator = np.random.default_rng(0)
    sizes = [(90, 120), (130, 70), (64, 64)]
    images = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    return [images[0], images[1].convert("L"), images[2].convert("RGBA")]


@pytest.fixture(scope="module")
def decomposition(model_and_clip, photographs):
    return nadpipe.decompose(model_and_clip[0], photographs, batch_size=2)


def own_embeddings(model, clip, photographs):
    """Return the embeddings of open_clip's own preprocessing and encoder."""
    seen = model.preprocessing
    transform = open_clip.image_transform(
        seen.image_size, is_train=False, mean=seen.mean, std=seen.std, interpolation=seen.interpolation
    )
    with torch.no_grad():
        return clip.encode_image(torch.stack([transform(image) for image in photographs]))


def test_pairs_and_rest_sum_to_open_clips_embedding(model_and_clip, decomposition, photographs):
    expected = own_embeddings(*model_and_clip, photographs)
    difference = (decomposition.reconstruction - expected).norm(dim=1) / expected.norm(dim=1)
    assert decomposition.images == 3
    assert difference.max() < 1e-5
    assert decomposition.residual.max() < 1e-5


def test_what_pairs_add_sums_to_the_cosine(model_and_clip, decomposition):
    texts = ["a fish", "kite, red", "é"]
    cosines = decomposition.cosines(texts)
    for image in range(3):
        table = decomposition.explain(texts, most=4, image=image)
        assert table.groupby("for_text")["adds"].sum()[texts].to_numpy() == pytest.approx(cosines.loc[image], abs=1e-5)
        for text in texts:
            rows = table[table["for_text"] == text]
            assert list(rows["pair"][-2:]) == ["all others", "rest"]
            adds = rows["adds"].to_numpy()[:-2]
            assert len(adds) == 8
            assert (np.diff(adds) <= 0).all()
            scores = decomposition.text_scores(texts, image)[texts.index(text)]
            assert adds[0] == pytest.approx(float(scores.max()))
            assert adds[-1] == pytest.approx(float(scores.min()))
    clip = model_and_clip[1]
    with torch.no_grad():
        text = clip.encode_text(open_clip.SimpleTokenizer(context_length=16)(texts))
    expected = torch.nn.functional.cosine_similarity(decomposition.embedding[:, None], text[None], dim=2)
    assert cosines.to_numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_templates_are_averaged(decomposition):
    embedded = decomposition.embed_texts(["fish"], ["a {}", "two {}s"])
    single = torch.cat([decomposition.embed_texts([prompt]) for prompt in ("a fish", "two fishs")])
    assert torch.allclose(embedded[0], torch.nn.functional.normalize(single.mean(0), dim=0), atol=1e-6)


def test_the_top_pairs_carry_the_largest_shares(decomposition):
    shares, table = decomposition.shares(1), decomposition.top_pairs(7, image=1)
    y = decomposition.embedding[1]
    rest = decomposition.rest[1] @ y / y.square().sum()
    assert float(shares.sum() + rest) == pytest.approx(1, abs=1e-5)
    assert table["share"].abs().to_numpy() == pytest.approx(shares.abs().flatten().sort(descending=True).values[:7].numpy())
    row = table.iloc[0]
    written = write_vectors(decomposition.readout, int(row["head"]))[int(row["neuron"])] * row["coefficient"]
    if not decomposition.rest.any():  # in a CLIP-ResNet, pairs share the biases
        return
    assert float(written @ y / y.square().sum()) == pytest.approx(row["share"], rel=1e-4)


def test_where_a_pair_fires_is_part_of_its_coefficient(decomposition):
    fires, prefix = decomposition.firing(1, 5, image=2), decomposition.prefix
    weight = nadpipe.library.decomposition.circuit.token_weights(decomposition.trace, decomposition.readout)[2, 1]
    parts = weight * decomposition.trace.activation[2, :, 5]
    assert fires.ravel() == pytest.approx(parts[prefix:].numpy())
    assert float(parts.sum()) == pytest.approx(float(decomposition.coefficient[2, 1, 5]), rel=1e-4, abs=1e-6)
    assert decomposition.picture(1, 5, 2).size == (256, 256)
    assert decomposition._repr_html_().count("<img") == 7


def test_images_come_from_files_as_well(model_and_clip, photographs, decomposition, tmp_path):
    photographs[0].save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        [embedding] = nadpipe.decompose(model_and_clip[0], path).embedding
        assert torch.allclose(embedding, decomposition.embedding[0], atol=1e-5)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model, one: nadpipe.decompose(model, []), "images: none is given"),
        (lambda model, one: nadpipe.decompose(model, "/none.jpg"), "/none.jpg: no such image"),
        (lambda model, one: nadpipe.decompose(model, "/none.jpg", block=99), "model.block: "),
        (lambda model, one: one.explain([]), "texts: give a list"),
        (lambda model, one: one.explain("fish"), "texts: give a list"),
        (lambda model, one: one.explain(["fish"], templates=["a"]), "templates: 'a' must contain"),
        (lambda model, one: one.explain(["fish"], templates=[]), "templates: "),
        (lambda model, one: one.firing(10**6, 0), "pair 1000000/0: not in the model; it has heads 0 to"),
        (lambda model, one: one.picture(0, -1), "pair 0/-1: not in the model"),
    ],
)
def test_wrong_arguments_are_refused(model_and_clip, decomposition, use, message):
    with pytest.raises(NadpipeError, match=r"^[^\n]+$") as error:
        use(model_and_clip[0], decomposition)
    assert message in str(error.value)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, nadpipe; print(*{'torch', 'numpy', 'pandas', 'open_clip'} & set(sys.modules)); dir(nadpipe)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert set(nadpipe.__all__) < set(dir(nadpipe))
    assert all(getattr(nadpipe, name) is not None for name in nadpipe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'decompos'"):
        _ = nadpipe.decompos


@pytest.fixture(scope="module")
def results(finished):
    return nadpipe.open_results(finished.folder / "results")


def test_results_open_every_table_and_store(results):
    assert {"pairs", "segmentation", "shift", "shift/discovered", "discovery/images", "ledger"} <= set(results.tables)
    assert len(results["pairs"]) == len(pd.read_parquet(results.folder / "pairs.parquet"))
    assert results["segmentation"].equals(pd.read_csv(results.folder / "segmentation.csv"))
    assert all(len(results[name]) for name in results.tables)
    for name in results.stores:
        assert results.open_store(name).sizes
    coefficient = results.open_store("discovery/contributions/0")["coefficient"].sel(head=3, neuron=17)
    assert coefficient.dims == ("view",)


def test_results_refuse_what_is_not_there(results, tmp_path):
    for use in (lambda: results["pear"], lambda: results.open_store("pear"), lambda: nadpipe.open_results(tmp_path)):
        with pytest.raises(NadpipeError, match=r"^[^\n]+$"):
            use()


def test_a_damaged_table_is_refused(results, tmp_path):
    (tmp_path / "pairs.parquet").write_bytes((results.folder / "pairs.parquet").read_bytes()[:-1])
    with pytest.raises(NadpipeError, match=r"pairs\.parquet"):
        nadpipe.open_results(tmp_path)["pairs"]


def test_results_name_the_pairs_of_an_image(results):
    path = next((results.folder / "demo/segmentation/images").iterdir())
    top = results.decompose(path).top_pairs(5)
    named = results["pairs"].set_index(["head", "neuron"])["active_text"]
    assert list(top["text"]) == [named[pair] for pair in zip(top["head"], top["neuron"], strict=True)]
    explained = results.explain(path, ["fish", "blue"], most=3)
    assert len(explained) == 2 * 8
    assert explained["text"].notna().sum() == 12
    pair = results.pair(int(top["head"][0]), int(top["neuron"][0]))
    assert pair.name == top["pair"][0]
    assert (pair.texts["rule"] == "active").any()
    assert len(pair.top) == len(pair.bottom)
    assert pair.top[0][0] >= pair.bottom[0][0]
    assert pair._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(NadpipeError, match="neuron 99999: not in the model"):
        results.pair(0, 99999)


def test_results_find_pairs_by_text(results):
    found = results.search("blue", most=4)
    assert set(found["rule"]) <= {"active", "nearest", "sparse"}
    assert found.groupby("rule").size().max() <= 4
    assert (found["text"] == "blue").all()
    with pytest.raises(NadpipeError, match="no text that names a pair contains"):
        results.search("no such text")


def test_results_segment_an_image_as_the_command_does(results, tmp_path, monkeypatch):
    path = next((results.folder / "demo/segmentation/images").glob("*.jpg"))
    segmented = results.segment(Image.open(path), ["fish", "grass", "sky"])
    assert segmented.labels.shape == Image.open(path).size[::-1]
    assert segmented.classes == ["fish", "grass", "sky"]
    counts = np.bincount(segmented.labels.ravel(), minlength=3) / segmented.labels.size
    assert segmented.shares.to_numpy() == pytest.approx(counts)
    assert segmented._repr_png_().startswith(b"\x89PNG")
    nadpipe.library.segmentation.segment_files([path], ["fish", "grass", "sky"], tmp_path / "out", results.folder)
    [labels] = (tmp_path / "out/labels").glob("*/*.png")
    assert (np.asarray(Image.open(labels)) == segmented.labels).all()
