"""WT-ASBS (arXiv 2510.11923): a diffusion learned from energies alone and pushed along collective variables."""
