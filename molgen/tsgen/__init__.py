"""TS-GEN: transition states from reactant and product by conditional flow matching (arXiv 2507.10530)."""
