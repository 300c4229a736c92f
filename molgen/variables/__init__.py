"""Collective variables: one language for `--cv` (pushed along), `--wall` and `--observable` (averaged)."""

from molgen.variables.cv import CV, check_start, custom, linear, values, values_and_gradients, wrapped
from molgen.variables.molecule import Molecule
from molgen.variables.of_atoms import angle, coordination, distance, torsion, volume
from molgen.variables.of_residues import backbone_torsions
from molgen.variables.of_structures import path_s, path_z, rmsd
from molgen.variables.parse import parse_cv

__all__ = [
    "CV",
    "Molecule",
    "angle",
    "backbone_torsions",
    "check_start",
    "coordination",
    "custom",
    "distance",
    "linear",
    "parse_cv",
    "path_s",
    "path_z",
    "rmsd",
    "torsion",
    "values",
    "values_and_gradients",
    "volume",
    "wrapped",
]
