"""Build the explorer: static pages about every pair, which load their data from small files when needed."""

from pathlib import Path

import numpy as np

from nadpipe.errors import NadpipeError
from nadpipe.pages.explorer_files import PairTexts, Tables, find_extremes, map_firing, write_images, write_pages
from nadpipe.store.arrays import open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.kinds.features import CONTRIBUTIONS, FEATURES
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, DIRECTIONS, UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.pool import read_pool
from nadpipe.store.shards import join, open_shards
from nadpipe.store.tables import read_parquet


def build_explorer(
    images: Path,
    features: tuple[Path, ...],
    contributions: tuple[Path, ...],
    directions: Path,
    pairs: Path,
    neurons: Path,
    heads: Path,
    assignments: Path,
    correlated: Path,
    readout: Path,
    output: Path,
    shown: int = 4,
    thumbnail: int = 160,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a folder that any static file server can serve. Its entry page is index.html.

    Args:
        images: Manifest of the discovery images.
        features: All shards of the discovery features.
        contributions: All shards of the discovery contributions.
        directions: Directions of the pairs, for their signs.
        pairs: Table of the pairs.
        neurons: Table of the neurons.
        heads: Table of the heads.
        assignments: Texts of the pairs, by direction.
        correlated: Texts of the pairs, by correlation.
        readout: Exported readout, with attention weights.
        output: Folder.
        shown: Images shown at each end of a pair.
        thumbnail: Side of an image, in pixels.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    pool, model = read_pool(readout)
    feature_stores = open_shards(features, FEATURES, model)
    contribution_stores = open_shards(contributions, CONTRIBUTIONS, model)
    image_id = join(contribution_stores, "image_id")
    if not np.array_equal(join(feature_stores, "image_id"), image_id):
        raise NadpipeError(f"{features[0]}: holds other images than {contributions[0]}; give shards of one data set")
    sign = open_zarr(directions, DIRECTIONS["pair"], model).tensor("sign")
    tables = Tables(
        read_parquet(pairs, UNIT_TABLES["pair"], model).sort_values(["head", "neuron"], ignore_index=True),
        read_parquet(neurons, UNIT_TABLES["neuron"], model).set_index("neuron"),
        read_parquet(heads, UNIT_TABLES["head"], model).set_index("head"),
    )
    texts = PairTexts(read_parquet(assignments, ASSIGNMENTS["pair"], model), read_parquet(correlated, CORRELATIONS, model))
    extremes = find_extremes(contribution_stores, sign, shown)
    maps = map_firing(feature_stores, contribution_stores, pool, extremes.views, sign)
    manifest = read_images(images, copy).set_index("image_id")
    with atomic_path(output) as folder:
        write_pages(folder, model, pool, tables, texts, extremes, maps, image_id)
        write_images(folder, manifest, image_id, extremes.views, feature_stores, thumbnail)
