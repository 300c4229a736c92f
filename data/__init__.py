"""Data sets of reactions: the npz format and importers for the published ones."""

from molgen.data.reactions import Reaction, load_npz, save_npz

__all__ = ["Reaction", "load_npz", "save_npz"]
