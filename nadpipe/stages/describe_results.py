"""Say what the final tables of a run were made with: model, images, config, code, and the tables' own checksums."""

import hashlib
import json
from importlib import metadata
from pathlib import Path

from nadpipe import __version__
from nadpipe.artifacts import read_parquet, whole
from nadpipe.datasets import content_fingerprint
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import PACKAGE, code_fingerprint
from nadpipe.inputs import read_pool

_LIBRARIES = ("torch", "open_clip_torch", "numpy", "pandas", "pyarrow", "zarr", "pillow", "scipy", "snakemake")


def describe_results(
    tables: tuple[Path, ...], images: tuple[Path, ...], attnpool_store: Path, config: str, output: Path
) -> None:
    """Write a JSON file that goes with the tables of a run; the same run gives the same bytes.

    Args:
        tables: Final tables, CSV or Parquet.
        images: Manifests, each in a folder with the name of its data set.
        attnpool_store: Exported attention pool: it knows the model.
        config: Settings that results depend on, as JSON.
        output: JSON file.
    """
    pool, model = read_pool(attnpool_store)
    try:
        settings = json.loads(config)
    except ValueError as error:
        raise NadpipeError(f"--config: not JSON ({error})") from None
    stages = sorted(path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py"))
    described = {
        "nadpipe": __version__,
        "model": {
            "architecture": model.architecture,
            "sha256": model.model,
            **{name: getattr(pool, name) for name in ("heads", "neurons", "tokens")},
        },
        "datasets": {path.parent.name: _data_set(path) for path in images},
        "config": settings,
        "code": {stage: code_fingerprint(f"nadpipe.stages.{stage}") for stage in stages},
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "tables": {_name(path, output.parent): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in tables},
    }
    with whole(output) as partial:
        partial.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _name(path: Path, results: Path) -> str:
    """A table as the user names it, wherever the folder of results or its copy is."""
    return str(Path("results", path.relative_to(results)) if path.is_relative_to(results) else path)


def _data_set(path: Path) -> dict[str, object]:
    """What identifies the images that were used, and how many were not."""
    manifest = read_parquet(path, "images")
    used = manifest[manifest["image_id"] >= 0]
    return {"images": len(used), "skipped": len(manifest) - len(used), "content": content_fingerprint(used)}
