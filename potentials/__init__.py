"""Potentials: energies and forces of a batch of geometries behind one protocol, from xTB to any ASE calculator."""

from molgen.potentials.base import Potential

__all__ = ["Potential"]
