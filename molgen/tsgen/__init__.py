"""TS-GEN: transition states from reactant and product by conditional flow matching (arXiv 2507.10530)."""

from molgen.tsgen.weights import Generator, load_model

__all__ = ["Generator", "load_model"]
