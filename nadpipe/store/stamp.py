"""Stamps: the kind, format, model and code of an artifact, written with it and checked when it is opened."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nadpipe import __version__
from nadpipe.errors import NadpipeError
from nadpipe.fingerprint import code_fingerprint
from nadpipe.store.schema import StoreKind, TableKind


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Identity of the model that an artifact belongs to, and fingerprint of the code that made it."""

    model: str = ""  # sha256 of weights, model config and preprocessing; empty if no model was involved
    architecture: str = ""
    code: str = ""

    def made_by(self, module: str) -> "Stamp":
        """Return the stamp of an artifact that a stage's module makes for this model."""
        return dataclasses.replace(self, code=code_fingerprint(module))

    def attributes(self, kind: StoreKind | TableKind) -> dict[str, Any]:
        """Return the stamp as stored with an artifact of this kind."""
        return {"kind": kind.name, "format": kind.format, "nadpipe_version": __version__, **dataclasses.asdict(self)}


def check_stamp(path: Path, attributes: Mapping[str, Any], kind: StoreKind | TableKind, model: Stamp | None) -> None:
    """Raise NadpipeError if an artifact has another kind or format, or, if `model` is given, another model."""
    stored, version = attributes.get("kind"), attributes.get("format")
    if stored != kind.name:
        holds = stored or "no nadpipe artifact"
        raise NadpipeError(f"{path}: holds {holds}, expected {kind.name}; delete it and make it again")
    if version != kind.format:
        older = isinstance(version, int) and version < kind.format
        age = " of an older nadpipe" if older else ""
        raise NadpipeError(
            f"{path}: has format {version}{age}, this nadpipe reads format {kind.format}; delete it and make it again"
        )
    if model is not None and attributes.get("model") != model.model:
        stored_model = f"{attributes.get('architecture')} {str(attributes.get('model'))[:8]}"
        expected_model = f"{model.architecture} {model.model[:8]}"
        raise NadpipeError(f"{path}: is for model {stored_model}, this run is {expected_model}; delete it and make it again")
