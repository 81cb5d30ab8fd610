"""Where the demo's files lie in the package; nothing heavy is imported here."""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "clip.safetensors"
