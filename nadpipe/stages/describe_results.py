"""Record the provenance of a run's final tables: model, images, config, code, libraries and checksums."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

from nadpipe import __version__
from nadpipe.circuit.directions import warn_of_top_images
from nadpipe.data.manifest import content_fingerprint
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import PACKAGE, code_fingerprint
from nadpipe.store.arrays import open_zarr
from nadpipe.store.atomic import atomic_path
from nadpipe.store.checksums import UNSEALED, read_table_bytes, seal
from nadpipe.store.kinds.images import IMAGES
from nadpipe.store.kinds.model import READOUT
from nadpipe.store.kinds.units import DIRECTIONS
from nadpipe.store.tables import read_parquet

_LIBRARIES = ("torch", "open_clip_torch", "numpy", "pandas", "pyarrow", "zarr", "pillow", "scipy", "snakemake")
_MODEL_ATTRIBUTES = ("heads", "neurons", "tokens")


def describe_results(
    tables: tuple[Path, ...], images: tuple[Path, ...], readout: Path, directions: Path, config: str, output: Path
) -> None:
    """Write a JSON file with the provenance of a run's tables. The same run gives the same bytes.

    Damaged tables are refused.

    Args:
        tables: Final tables, CSV or Parquet.
        images: Manifests, each in a folder named like its data set.
        readout: Exported readout, for the model's identity.
        directions: Pair directions, for the number of images that they were fitted to.
        config: Settings that results depend on, as JSON.
        output: JSON file.
    """
    model = open_zarr(readout, READOUT)
    fitted = open_zarr(directions, DIRECTIONS["pair"], model.stamp).attributes
    warning = warn_of_top_images(fitted["views"], fitted["top_images"])
    try:
        settings = json.loads(config)
    except ValueError as error:
        raise NadpipeError(f"--config: not JSON ({error}); pass a JSON object") from None
    stages = sorted(path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py"))
    provenance = {
        "nadpipe": __version__,
        "model": {
            "architecture": model.stamp.architecture,
            "sha256": model.stamp.model,
            **{name: model.attributes[name] for name in _MODEL_ATTRIBUTES},
        },
        "datasets": {path.parent.name: _describe_images(path) for path in images},
        "directions": {"images": fitted["views"], "top_images": fitted["top_images"]},
        "warnings": [warning] if warning else [],
        "config": settings,
        "code": {stage: code_fingerprint(f"nadpipe.stages.{stage}") for stage in stages},
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "tables": {_table_name(path, output.parent): _describe_table(path) for path in tables},
        "checksum": UNSEALED,
    }
    with atomic_path(output) as partial:
        partial.write_text(json.dumps(provenance, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        seal(partial)


def _table_name(path: Path, results: Path) -> str:
    """Return a table's path as the user names it, even if the results folder is a copy."""
    return str(Path("results", path.relative_to(results)) if path.is_relative_to(results) else path)


def _describe_table(path: Path) -> dict[str, str]:
    return {"sha256": hashlib.sha256(read_table_bytes(path)).hexdigest()}


def _describe_images(path: Path) -> dict[str, object]:
    """Return the numbers of used and skipped images, and a fingerprint of the used ones."""
    manifest = read_parquet(path, IMAGES)
    used = manifest[manifest["image_id"] >= 0]
    return {"images": len(used), "skipped": len(manifest) - len(used), "content": content_fingerprint(used)}
