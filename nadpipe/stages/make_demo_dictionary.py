"""Write the texts that name the units of the demo's models."""

from pathlib import Path

from nadpipe.demo.data import dictionary
from nadpipe.store.atomic import atomic_path


def make_demo_dictionary(output: Path) -> None:
    """Write the words of the demo's world, and pairs of words that can both be true of a scene.

    Args:
        output: Text file with one text per line.
    """
    with atomic_path(output) as path:
        path.write_text("\n".join(dictionary()) + "\n", encoding="utf-8")
