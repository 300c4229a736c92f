"""Diffusion model of peptide conformations, enhanced along collective variables."""
