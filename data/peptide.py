"""A peptide as its sequence: atoms in PDB names, bonds, the ff14SB + GB OBC2 System and its parameters.

Topologies come from the residue templates of `amber14-all.xml` (Maier et al., J. Chem. Theory Comput. 2015, 11, 3696)
and need no coordinates. Order of atoms: residue by residue; N, CA, C, O, then the side chain by remoteness (B, G, D, E,
Z, H) and branch; every heavy atom followed by its hydrogens; OXT last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from molgen.errors import InputError
from molgen.units import KJ_MOL, NM

if TYPE_CHECKING:
    import mdtraj
    from openmm import System
    from openmm.app import Topology

    from molgen.potentials.base import Potential

RESIDUES = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIE", "I": "ILE", "K": "LYS",
    "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR", "V": "VAL",
    "W": "TRP", "Y": "TYR", "[HID]": "HID", "[HIE]": "HIE", "[HIP]": "HIP",
}  # fmt: skip
CAPS = (None, "ace-nme")
_LETTERS = f"one of {''.join(name for name in RESIDUES if len(name) == 1)}, or [HID], [HIE], [HIP]"
_BACKBONE, _REMOTENESS = ("N", "CH3", "CA", "C", "O"), "BGDEZH"


@dataclass(frozen=True, eq=False)
class Parameters:
    """Force-field parameters by atom index, in Angstrom, eV, radians and elementary charges.

    Attributes:
        types: N force-field type names.
        charges, sigma, epsilon: (N,) partial charges and Lennard-Jones parameters.
        bond_length, bond_k: (M,), aligned with `Peptide.bonds`; E = k/2 (r - length)^2.
        angles, angle_theta, angle_k: (K, 3), (K,), (K,); E = k/2 (angle - theta)^2, the middle atom is the apex.
        torsions, torsion_n, torsion_phase, torsion_k: (L, 4), (L,), (L,), (L,); E = k (1 + cos(n phi - phase)); several
            terms a torsion, impropers included.
    """

    types: tuple[str, ...]
    charges: np.ndarray
    sigma: np.ndarray
    epsilon: np.ndarray
    bond_length: np.ndarray
    bond_k: np.ndarray
    angles: np.ndarray
    angle_theta: np.ndarray
    angle_k: np.ndarray
    torsions: np.ndarray
    torsion_n: np.ndarray
    torsion_phase: np.ndarray
    torsion_k: np.ndarray


@dataclass(frozen=True, eq=False)
class Peptide:
    """One peptide of L amino acids; `build_peptide` makes it. Shared by all who ask for it: change nothing in it.

    Attributes:
        sequence, cap: as given to `build_peptide`.
        names: N PDB atom names.
        residue_index: (N,) residue of each atom, from 0, caps counted.
        residue_names: one a residue: "ALA", "HIS" (whatever its protonation), ..., "ACE", "NME".
        numbers: (N,) atomic numbers.
        bonds: (M, 2) bonded pairs, i < j, sorted.
        parameters: see `Parameters`.
        topology: OpenMM Topology.
        system: OpenMM System: ff14SB, GB OBC2 in its native form, no cutoff, no constraints.
    """

    sequence: str
    cap: str | None
    names: tuple[str, ...]
    residue_index: np.ndarray
    residue_names: tuple[str, ...]
    numbers: np.ndarray
    bonds: np.ndarray
    parameters: Parameters
    topology: Topology
    system: System

    def __len__(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def forms(self) -> tuple[str, ...]:
        """What sets it apart from an uncapped peptide of the 20 residues with HIE: "[HID]", "[HIP]", its caps."""
        return (*sorted({"[HID]", "[HIP]"} & {*tokens(self.sequence)}), *([self.cap] if self.cap else []))

    @property
    def labels(self) -> tuple[str, ...]:
        """N times "residue index:residue name:atom name:element", as MD files name the atoms."""
        elements = (atom.element.symbol for atom in self.topology.atoms())
        residues = self.residue_index.tolist()
        zipped = zip(residues, self.names, elements, strict=True)
        return tuple(f"{r}:{self.residue_names[r]}:{name}:{element}" for r, name, element in zipped)

    def potential(self, platform: str = "auto", workers: int = 1) -> Potential:
        """Energies and forces (Angstrom, eV): an OpenMMPotential, in `workers` processes when more than one.

        Raises:
            InputError: no such platform.
        """
        from molgen.potentials.openmm import OpenMMPotential
        from molgen.potentials.parallel import ParallelPotential

        factory = partial(OpenMMPotential, self.system, self.topology, platform)
        return factory() if workers == 1 else ParallelPotential(factory, workers)

    def mdtraj_topology(self) -> mdtraj.Topology:
        """The same atoms and bonds for MDTraj."""
        import mdtraj

        return mdtraj.Topology.from_openmm(self.topology)


def tokens(sequence: str) -> list[str]:
    """Letters and brackets of a sequence: "A[HIP]" -> ["A", "[HIP]"]; anything goes."""
    return re.findall(r"\[[^\[\]]*\]|.", sequence, flags=re.DOTALL)


def residues_of(sequence: str) -> tuple[str, ...]:
    """Template names of a sequence: "AH[HIP]" -> ("ALA", "HIE", "HIP").

    Raises:
        InputError: empty, or a letter or bracket that is no residue (names its position, counted in residues from 1).
    """
    if not sequence:
        raise InputError("the sequence is empty", where="sequence", expected="one-letter codes, such as AAGY")
    letters = tokens(sequence)
    for position, token in enumerate(letters, start=1):
        if token not in RESIDUES:
            remedy = "close the bracket" if token == "[" else None
            if token.upper() in RESIDUES:
                remedy = f"write {token.upper()} (L amino acids only)"
            raise InputError(
                f"unknown residue {token!r} at position {position}",
                where=f"sequence {sequence!r}",
                expected=_LETTERS,
                remedy=remedy,
            )
    return tuple(RESIDUES[token] for token in letters)


def plain_sequence(sequence: str) -> str:
    """The sequence as files and tables have it: "[HIE]" is H."""
    return sequence.replace("[HIE]", "H")


def build_peptide(sequence: str, cap: str | None = None) -> Peptide:
    """The peptide of a sequence.

    Args:
        sequence: one-letter codes from N to C; H is HIE; "[HID]", "[HIE]", "[HIP]" choose the protonation. ASP and GLU
            are charged negative, LYS and ARG positive, CYS is a thiol: disulfides are not formed.
        cap: None or "none" for charged termini (NH3+ and COO-), "ace-nme" for acetyl and N-methylamide.

    Raises:
        InputError: unknown letter, bracket or cap; empty; one residue without caps, which ff14SB does not have.
    """
    if not isinstance(sequence, str):
        raise InputError(f"{sequence!r}", where="sequence", expected="text, such as 'AAGY'")
    residues_of(sequence)
    cap = None if cap == "none" else cap
    if cap not in CAPS:
        raise InputError(f"unknown cap {cap!r}", where="--cap", expected="none (charged termini) or ace-nme")
    return _build(plain_sequence(sequence), cap)


@lru_cache(maxsize=512)
def _build(sequence: str, cap: str | None) -> Peptide:
    residues = residues_of(sequence)
    if cap is None and len(residues) == 1:
        raise InputError(
            "one residue with both termini charged has no parameters in ff14SB",
            where=f"sequence {sequence!r}",
            expected="at least two residues",
            remedy="give --cap ace-nme, or a longer sequence",
        )
    if cap is None:
        templates = (f"N{residues[0]}", *residues[1:-1], f"C{residues[-1]}")
    else:
        templates = ("ACE", *residues, "NME")
    topology, types = _topology(templates)
    system = _system(topology, templates)
    atoms = list(topology.atoms())
    bonds = np.array(sorted(sorted((a.index, b.index)) for a, b in topology.bonds()))
    return Peptide(
        sequence=sequence,
        cap=cap,
        names=tuple(atom.name for atom in atoms),
        residue_index=_frozen([atom.residue.index for atom in atoms]),
        residue_names=tuple(residue.name for residue in topology.residues()),
        numbers=_frozen([atom.element.atomic_number for atom in atoms]),
        bonds=_frozen(bonds),
        parameters=_parameters(system, bonds, types),
        topology=topology,
        system=system,
    )


@lru_cache(maxsize=1)
def _force_field() -> Any:
    from openmm.app import ForceField

    return ForceField("amber14-all.xml", "implicit/obc2.xml")


def _topology(templates: tuple[str, ...]) -> tuple[Topology, tuple[str, ...]]:
    """Topology of residue templates joined C to N, and the force-field type of each atom."""
    from openmm.app import Topology

    topology, types = Topology(), []
    chain, previous = topology.addChain("A"), None
    for number, name in enumerate(templates, start=1):
        template = _force_field()._templates[name]
        residue = topology.addResidue(_pdb_name(name), chain, str(number))
        placed = {}
        for index in _order(template):
            atom = template.atoms[index]
            # the PDB's N-terminal hydrogens are H, H2, H3
            label = "H" if atom.name == "H1" and template.atoms[_heavy(template, index)].name == "N" else atom.name
            placed[index] = topology.addAtom(label, atom.element, residue)
            types.append(atom.type.removeprefix("protein-"))
        for i, j in template.bonds:
            topology.addBond(placed[i], placed[j])
        ends = {atom.name: atom for atom in placed.values()}
        if previous is not None:
            topology.addBond(previous, ends["N"])
        previous = ends.get("C")
    return topology, tuple(types)


def _pdb_name(template: str) -> str:
    name = template[-3:]
    return "HIS" if name in ("HID", "HIE", "HIP") else name


def _order(template: Any) -> list[int]:
    """Indices of a template's atoms in the order of this module."""

    def key(index: int) -> tuple:
        name = template.atoms[index].name
        if name == "OXT":
            return (9, 0, "")
        return (0, _BACKBONE.index(name), "") if name in _BACKBONE else (1, _REMOTENESS.index(name[1]), name[2:])

    hydrogens = {i for i, atom in enumerate(template.atoms) if atom.element.symbol == "H"}
    order = []
    for heavy in sorted(set(range(len(template.atoms))) - hydrogens, key=key):
        own = [i for i in hydrogens if _heavy(template, i) == heavy]
        order += [heavy, *sorted(own, key=lambda i: template.atoms[i].name)]
    return order


def _heavy(template: Any, hydrogen: int) -> int:
    """The atom a hydrogen is bonded to."""
    return next(i + j - hydrogen for i, j in template.bonds if hydrogen in (i, j))


def _system(topology: Topology, templates: tuple[str, ...]) -> System:
    from openmm import app

    from molgen.potentials.openmm import native_gbsa

    chosen = dict(zip(topology.residues(), templates, strict=True))
    system = _force_field().createSystem(
        topology, nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False, residueTemplates=chosen
    )
    return native_gbsa(system)


def _parameters(system: System, bonds: np.ndarray, types: tuple[str, ...]) -> Parameters:
    """Read the terms of the System's forces."""
    from openmm import unit

    forces = {type(force).__name__: force for force in system.getForces()}

    def plain(value: Any) -> float:
        return value.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(value) else value

    def terms(force: str, count: str, get: str) -> list[list[float]]:
        found = forces[force]
        return [[plain(value) for value in getattr(found, get)(i)] for i in range(getattr(found, count)())]

    nonbonded = np.array(terms("NonbondedForce", "getNumParticles", "getParticleParameters"))
    springs = {
        (min(int(i), int(j)), max(int(i), int(j))): (length * NM, k * KJ_MOL / NM**2)
        for i, j, length, k in terms("HarmonicBondForce", "getNumBonds", "getBondParameters")
    }
    along = np.array([springs[i, j] for i, j in bonds.tolist()])
    angles = np.array(terms("HarmonicAngleForce", "getNumAngles", "getAngleParameters"))
    torsions = np.array(terms("PeriodicTorsionForce", "getNumTorsions", "getTorsionParameters"))
    return Parameters(
        types=types,
        charges=_frozen(nonbonded[:, 0]),
        sigma=_frozen(nonbonded[:, 1] * NM),
        epsilon=_frozen(nonbonded[:, 2] * KJ_MOL),
        bond_length=_frozen(along[:, 0]),
        bond_k=_frozen(along[:, 1]),
        angles=_frozen(angles[:, :3].astype(np.int64)),
        angle_theta=_frozen(angles[:, 3]),
        angle_k=_frozen(angles[:, 4] * KJ_MOL),
        torsions=_frozen(torsions[:, :4].astype(np.int64)),
        torsion_n=_frozen(torsions[:, 4].astype(np.int64)),
        torsion_phase=_frozen(torsions[:, 5]),
        torsion_k=_frozen(torsions[:, 6] * KJ_MOL),
    )


def _frozen(values: Any) -> np.ndarray:
    array = np.ascontiguousarray(values)
    array.flags.writeable = False
    return array
