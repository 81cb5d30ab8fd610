"""Locate the demo's files in the package. This module imports nothing heavy."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "clip.safetensors"  # the CLIP-ResNet
VIT_CHECKPOINT = Path(__file__).parent / "vit.safetensors"
