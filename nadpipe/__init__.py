"""nadpipe: neuron-attention decomposition of CLIP (Bu & Gandelsman, arXiv 2509.19943).

model = nadpipe.load_model("RN50-quickgelu", "openai")
print(nadpipe.decompose(model, "photo.jpg").top_pairs())

results = nadpipe.open_results("results")
print(results.explain("photo.jpg", ["a dog", "a cat"]))
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Decomposition",
    "Model",
    "NadpipeError",
    "Pair",
    "Results",
    "Segmentation",
    "decompose",
    "load_model",
    "open_results",
]

if TYPE_CHECKING:
    from nadpipe.errors import NadpipeError
    from nadpipe.library.decomposition import Decomposition, decompose
    from nadpipe.library.results import Pair, Results, Segmentation, open_results
    from nadpipe.towers.model import Model, load_model

_HOMES = {
    "nadpipe.errors": ("NadpipeError",),
    "nadpipe.library.decomposition": ("Decomposition", "decompose"),
    "nadpipe.library.results": ("Pair", "Results", "Segmentation", "open_results"),
    "nadpipe.towers.model": ("Model", "load_model"),
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because torch alone takes seconds to import."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'nadpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*__all__, "__version__"])
