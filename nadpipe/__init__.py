"""nadpipe: neuron-attention decomposition of CLIP models (Bu & Gandelsman, arXiv 2509.19943)."""

__version__ = "0.1.0"
