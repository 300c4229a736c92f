"""Potentials: energies and forces of a batch of geometries behind one protocol, from model systems to any calculator.

Each kind is in the module of its name: xtb, ase, openmm, analytic, composite, parallel.
"""

from molgen.potentials.base import Potential, SamplewisePotential
from molgen.potentials.conformance import Conformance, check_potential

__all__ = ["Conformance", "Potential", "SamplewisePotential", "check_potential"]
