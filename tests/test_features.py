"""Stage extract_features on a tiny random model: precisions, worker processes, faults."""

import copy
import os
import re

import numpy as np
import pytest
from stage_run import Run, noise

import nadpipe.stages.extract_features as extract_features_module
from nadpipe.errors import NadpipeError
from nadpipe.stages.extract_features import extract_features
from nadpipe.store.arrays import open_zarr
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES
from nadpipe.towers import clip_resnet


def test_bfloat16_features_store_their_error_and_their_pairs_sum_to_the_embedding(run, capsys):
    run.write_images(noise(5))
    [contributions] = run.decompose(precision="bfloat16")
    features = open_zarr(run.folder / "d-features-0.zarr", FEATURES)
    assert 1e-5 < features.attributes["encode_image_error"] < 0.1
    reported = r"bfloat16: embeddings of the first 5 views are within \d\.\de-\d\d of encode_image in float32"
    assert re.search(reported, capsys.readouterr().err)
    assert open_zarr(contributions, CONTRIBUTIONS)["residual"][:].max() < 1e-5


def test_a_tower_that_computes_another_function_is_reported(run, monkeypatch):
    run.write_images(noise(3))
    run.decompose()
    assert open_zarr(run.folder / "d-features-0.zarr", FEATURES).attributes["encode_image_error"] < 1e-5
    fold = clip_resnet.fold_batch_norms

    def fold_wrongly(module):
        folded = fold(module)
        if hasattr(folded, "layer4"):
            folded.layer4[0].conv3.weight.mul_(1.001)
        return folded

    monkeypatch.setattr(clip_resnet, "fold_batch_norms", fold_wrongly)
    with pytest.raises(NadpipeError, match=r"float32: embeddings of the first 3 views .*\d.*rounding"):
        run.decompose(name="x")
    assert not (run.folder / "x-features-0.zarr").exists()


def test_a_correct_tower_is_accepted_where_rounding_is_large(tmp_path, tiny_clip, capsys):
    clip = copy.deepcopy(tiny_clip)
    run = Run(tmp_path, clip)
    run.write_images(noise(3))
    run.decompose()
    embedding = open_zarr(run.folder / "d-features-0.zarr", FEATURES).tensor("embedding")
    clip.visual.attnpool.c_proj.bias.sub_(embedding[0] * 0.9999)  # the embedding nearly cancels, its rounding does not
    run = Run(tmp_path, clip)
    capsys.readouterr()
    extract_features(run.folder / "images.parquet", output=run.folder / "e.zarr", device="cpu", **run.model)
    assert open_zarr(run.folder / "e.zarr", FEATURES).attributes["encode_image_error"] > 1e-5
    assert re.search(r"in float64, nadpipe's are within \S+ and encode_image's within \S+", capsys.readouterr().err)


def test_a_worker_that_dies_is_reported_in_one_line(run, monkeypatch):
    run.write_images(noise(3))
    monkeypatch.setattr(extract_features_module._Crops, "__getitem__", lambda crops, index: os._exit(1))
    with pytest.raises(NadpipeError, match=r"^features\.workers: .*process .*died \(.*\); use"):
        run.decompose(workers=1)
    assert not (run.folder / "d-features-0.zarr").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_and_batch_sizes_change_nothing(run, workers):
    run.write_images(noise(7))
    run.decompose()
    run.decompose(name="e", workers=workers, batch_size=3)
    one, other = (open_zarr(run.folder / f"{name}-features-0.zarr", FEATURES) for name in "de")
    np.testing.assert_allclose(other["activation"][:], one["activation"][:], atol=1e-5)
    np.testing.assert_allclose(other["embedding"][:], one["embedding"][:], atol=1e-5)
    (run.folder / "image 5.png").write_bytes(b"no image")
    with pytest.raises(NadpipeError, match=r"image 5\.png: has changed since the data set was listed; restore the file, or"):
        run.decompose(name="f", workers=workers, batch_size=3)
    assert not (run.folder / "f-features-0.zarr").exists()
