"""A working folder in which tests call the stages one by one on a tiny random model."""

import json

import numpy as np
import pandas as pd
from conftest import TINY
from PIL import Image
from safetensors.torch import save_file

from nadpipe.stages.accumulate_pairs import accumulate_pairs
from nadpipe.stages.assign_texts import assign_texts
from nadpipe.stages.average_heads import average_heads
from nadpipe.stages.compute_contributions import compute_contributions
from nadpipe.stages.correlate_texts import correlate_texts
from nadpipe.stages.embed_texts import embed_texts
from nadpipe.stages.export_readout import export_readout
from nadpipe.stages.extract_features import extract_features
from nadpipe.stages.fit_directions import fit_directions
from nadpipe.stages.index_classes import index_classes
from nadpipe.stages.index_images import index_images
from nadpipe.stages.measure_registers import measure_registers
from nadpipe.stages.measure_shares import measure_shares
from nadpipe.stages.sample_views import sample_views
from nadpipe.stages.score_segmentation import score_segmentation
from nadpipe.stages.segment_images import segment_images
from nadpipe.stages.select_pairs import select_pairs
from nadpipe.stages.tabulate_units import tabulate_units
from nadpipe.store.kinds.segmentation import IMAGE_SHARES
from nadpipe.store.kinds.units import UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.tables import read_parquet

METHODS = ("nad", "nad_centred", "neurons", "maskclip", "sclip", "attention")


class Run:
    """A working folder with the tiny model, and the stages with their paths."""

    def __init__(self, folder, clip, config=TINY, block=None):
        self.folder, self.block = folder, block
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, folder / "w.safetensors")
        (folder / "m.json").write_text(json.dumps(config))
        self.model = {"architecture": str(folder / "m.json"), "pretrained": str(folder / "w.safetensors")}
        self.pool = folder / "readout.zarr"
        export_readout(output=self.pool, block=block, **self.model)

    def write_images(self, pixels, **columns):
        """Save pictures and a table of them, and index it."""
        for image, picture in enumerate(pixels):
            Image.fromarray(picture).save(self.folder / f"image {image}.png")
        table = pd.DataFrame({"path": [f"image {image}.png" for image in range(len(pixels))], **columns})
        table.to_csv(self.folder / "t.csv", index=False)
        names = {"mask_column": "mask", "group_column": "group"}
        used = {key: column for key, column in names.items() if column in columns}
        index_images("table", self.folder / "t.csv", self.folder / "images.parquet", **used)

    def decompose(self, shards=1, views="centre", name="d", dtype="float32", **options):
        """Write features, contributions and the heads' means of all shards; return the paths of the contributions."""
        contributions = tuple(self.folder / f"{name}-{shard}.zarr" for shard in range(shards))
        for shard, output in enumerate(contributions):
            features = self.folder / f"{name}-features-{shard}.zarr"
            where = {"views": views, "shard": shard, "shards": shards, "device": "cpu", "block": self.block, **self.model}
            extract_features(self.folder / "images.parquet", output=features, dtype=dtype, **where, **options)
            compute_contributions(features, self.pool, output, self.means(output), dtype=dtype)
        return contributions

    def means(self, contributions):
        """Return the path of the heads' means that belong to a shard of contributions."""
        return contributions.with_name(f"means-{contributions.name}")

    def embed(self, name, texts):
        embed_texts(output=self.folder / f"{name}.zarr", texts=texts, device="cpu", **self.model)
        return self.folder / f"{name}.zarr"

    def accumulate(self, contributions):
        """Write the moments of all shards."""
        moments = tuple(path.with_name(f"moments-{path.name}") for path in contributions)
        images = self.folder / "images.parquet"
        top_images = min(4, len(read_images(images)))
        for path, output in zip(contributions, moments, strict=True):
            accumulate_pairs(images, path, output, top_images=top_images)
        return moments

    def fit(self, unit, contributions):
        moments = self.accumulate(contributions)
        fit_directions(unit, moments, self.pool, self.folder / f"{unit}.zarr", contributions, components=2)
        return self.folder / f"{unit}.zarr"

    def tabulate(self, unit, contributions):
        words = self.embed("words", ("a", "b", "c d"))
        assign_texts(unit, self.fit(unit, contributions), words, self.pool, self.folder / f"{unit}-texts.parquet", atoms=2)
        paths = (self.folder / f"{unit}.zarr", self.folder / f"{unit}-texts.parquet")
        correlated = self.folder / "correlated.parquet" if unit == "pair" else None
        if correlated:
            correlate_texts(contributions, self.folder / "pair.zarr", words, correlated)
        tabulate_units(unit, *paths, self.folder / f"{unit}s.parquet", correlated)
        return read_parquet(self.folder / f"{unit}s.parquet", UNIT_TABLES[unit])

    def classes(self, names=("a", "b", "c"), **options):
        """Write the table of classes and the embeddings of their names."""
        path = self.folder / "classes.parquet"
        index_classes("table", self.folder / "t.csv", path, classes=names, **options)
        embed_texts(output=self.folder / "classes.zarr", classes=path, device="cpu", **self.model)
        return path

    def select(self, contributions, texts=("a", "b", "c"), k=9, **options):
        words = self.embed("classes", texts)
        paths = (words, self.fit("pair", contributions), self.pool, self.folder / "s.zarr")
        select_pairs(*paths, **{"k": k, "reference": words, **options})
        return self.folder / "s.zarr"

    def sample(self, contributions, **options):
        """Sample the features of all shards; return the paths of the samples."""
        samples = tuple(path.with_name(f"samples-{path.name}") for path in contributions)
        for path, output in zip(contributions, samples, strict=True):
            features = path.with_name(path.name.replace("-", "-features-"))
            sample_views(self.folder / "images.parquet", features, output, **options)
        return samples

    def segment(self, contributions, shard=0, **options):
        """Segment one shard. The call for the first shard also measures registers and averages heads over all shards."""
        head_means, registers = self.folder / "heads.zarr", self.folder / "registers.parquet"
        if shard == 0:
            measure_registers(self.sample(contributions, number=3), self.pool, registers)
            average_heads(tuple(map(self.means, contributions)), head_means)
        inputs = [self.folder / name for name in ("images.parquet", "classes.parquet", f"d-features-{shard}.zarr", "s.zarr")]
        outputs = (self.folder / f"c-{shard}.parquet", self.folder / f"labels-{shard}")
        segment_images(*inputs, head_means, registers, self.pool, *outputs, **{"methods": METHODS, **options})
        return outputs

    def measure_shares(self, *confusion):
        """Measure the shares of the classes; return the summary and the table of images."""
        outputs = self.folder / "shares.csv", self.folder / "image-shares.parquet"
        measure_shares(confusion, (self.folder / "classes.parquet",), *outputs)
        return pd.read_csv(outputs[0]), read_parquet(outputs[1], IMAGE_SHARES)

    def score(self, *confusion):
        """Score all methods; return the table."""
        outputs = (self.folder / name for name in ("s.csv", "s.parquet", "d.parquet"))
        score_segmentation(confusion, (self.folder / "classes.parquet",), *outputs)
        return pd.read_csv(self.folder / "s.csv")


def noise(count, height=70, width=90, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8))
