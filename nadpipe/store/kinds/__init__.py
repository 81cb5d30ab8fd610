"""Schemas of all artifacts, one module per family. docs/artifacts.md is generated from them."""

import importlib

from nadpipe.store.schema import CsvKind, StoreKind, TableKind

FAMILIES = ("model", "images", "features", "units", "texts", "segmentation", "shift", "analyses", "explorer")


def all_kinds() -> list[StoreKind | TableKind | CsvKind]:
    """Return all kinds of artifacts, family by family in the order of their definition."""
    kinds = []
    for family in FAMILIES:
        for value in vars(importlib.import_module(f"{__name__}.{family}")).values():
            members = value.values() if isinstance(value, dict) else [value]
            kinds += [kind for kind in members if isinstance(kind, StoreKind | TableKind | CsvKind)]
    return kinds
