"""Schemas of all artifacts, one module per family. docs/artifacts.md is generated from them."""
