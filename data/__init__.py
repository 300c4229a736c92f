"""Reactions and dynamics of peptides: their formats, importers of published sets, and what new data are made from."""

from molgen.data.reactions import Reaction, load_npz, save_npz

__all__ = ["Reaction", "load_npz", "save_npz"]
