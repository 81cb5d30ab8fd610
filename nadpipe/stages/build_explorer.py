"""Build the explorer: static pages about every pair, which load their data from small files when needed."""

from pathlib import Path

from nadpipe.pages.explorer_files import PairTexts, Tables, write_images, write_pages
from nadpipe.store.atomic import atomic_path
from nadpipe.store.checksums import list_files
from nadpipe.store.explorer import join_maps, read_extremes
from nadpipe.store.kinds.explorer import FIRING
from nadpipe.store.kinds.units import ASSIGNMENTS, CORRELATIONS, UNIT_TABLES
from nadpipe.store.manifest import read_images
from nadpipe.store.pool import read_weights
from nadpipe.store.shards import open_shards
from nadpipe.store.tables import read_parquet


def build_explorer(
    images: Path,
    extremes: Path,
    firing: tuple[Path, ...],
    pairs: Path,
    neurons: Path,
    heads: Path,
    assignments: Path,
    correlated: Path,
    readout: Path,
    output: Path,
    thumbnail: int = 160,
    copy: tuple[str, str] | None = None,
) -> None:
    """Write a folder that any static file server can serve. Its entry page is index.html.

    Args:
        images: Manifest of the discovery images.
        extremes: Extreme views of every pair.
        firing: Maps of where pairs fire in these views, of all shards.
        pairs: Table of the pairs.
        neurons: Table of the neurons.
        heads: Table of the heads.
        assignments: Texts of the pairs, by direction.
        correlated: Texts of the pairs, by correlation.
        readout: Exported readout, for the sizes of the model.
        output: Folder.
        thumbnail: Side of an image, in pixels.
        copy: Folder of the images as the manifest names it, and the folder of the copy to read instead.
    """
    weights = read_weights(readout)
    model = weights.model
    tables = Tables(
        read_parquet(pairs, UNIT_TABLES["pair"], model).sort_values(["head", "neuron"], ignore_index=True),
        read_parquet(neurons, UNIT_TABLES["neuron"], model).sort_values("neuron", ignore_index=True),
        read_parquet(heads, UNIT_TABLES["head"], model).sort_values("head", ignore_index=True),
    )
    texts = PairTexts(read_parquet(assignments, ASSIGNMENTS["pair"], model), read_parquet(correlated, CORRELATIONS, model))
    ends, stores = read_extremes(extremes, model), open_shards(firing, FIRING, model)
    maps = join_maps(stores, ends)
    manifest = read_images(images, copy).set_index("image_id")
    with atomic_path(output) as folder:
        write_pages(folder, weights, tables, texts, ends, maps, ends.image_id)
        write_images(folder, manifest, ends.image_id, ends.views, stores, thumbnail)
        list_files(folder)
