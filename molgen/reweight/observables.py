"""Observables as people write them: "distance 3 17", "torsion 4 6 8 14", "phi 2", "rg", "helicity".

Atoms and residues count from 0, as in mdtraj (caps are residues too); a group of atoms is an mdtraj selection. Add one
to the registry with `@observable`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from molgen.errors import InputError

if TYPE_CHECKING:
    import mdtraj

Measure = Callable[[np.ndarray], np.ndarray]

# Best, Buchete, Hummer, Biophys. J. 95 (2008) L07: the right-handed alpha region, degrees
ALPHA_PHI, ALPHA_PSI = (-100.0, -30.0), (-67.0, -7.0)


@dataclass(frozen=True)
class Observable:
    """One number a sample.

    Attributes:
        text: as the user wrote it.
        unit: "A", "rad" or "" for a bare number.
        period: 2 pi for torsions (their mean is a direction), else None.
        measure: positions (n, N, 3) Angstrom -> (n,) in `unit`.
    """

    text: str
    unit: str
    period: float | None
    measure: Measure


@dataclass(frozen=True)
class Molecule:
    """What an observable may need to know: atomic numbers (N,), and the topology where there is one."""

    numbers: np.ndarray
    topology: mdtraj.Topology | None


@dataclass(frozen=True)
class _Kind:
    usage: str
    unit: str
    period: float | None
    build: Callable[[str, Molecule], Measure]


class _Unreadable(Exception):
    """(what, expected) for the error about an observable; its usage is what was expected by default."""


REGISTRY: dict[str, _Kind] = {}


def observable(word: str, usage: str, unit: str = "", period: float | None = None):
    """Register build(arguments, molecule) -> measure for observables that begin with `word`."""

    def register(build: Callable[[str, Molecule], Measure]):
        REGISTRY[word] = _Kind(usage, unit, period, build)
        return build

    return register


def parse_observable(text: str, numbers: np.ndarray, topology: mdtraj.Topology | None = None) -> Observable:
    """The observable that `text` names, checked against the molecule.

    Args:
        numbers: atomic numbers (N,).
        topology: needed by selections and by anything about residues.

    Raises:
        InputError: an unknown word (lists what there is), an atom or residue that does not exist, a selection that is
            empty or cannot be read, or no topology where one is needed.
    """
    bare = " " not in text.strip() and text.strip().split("_")[0] in REGISTRY  # "phi_1" is "phi 1"
    words = (text.replace("_", " ") if bare else text).split(None, 1)
    if not words or words[0].lower() not in REGISTRY:
        raise InputError(
            f"no observable {words[0] if words else ''!r}",
            where=f"observable {text!r}",
            expected="; ".join(kind.usage for kind in REGISTRY.values()),
        )
    kind = REGISTRY[words[0].lower()]
    try:
        measure = kind.build(words[1].strip() if len(words) > 1 else "", Molecule(np.asarray(numbers), topology))
    except _Unreadable as error:
        what, expected = (*error.args, kind.usage)[:2]
        raise InputError(what, where=f"observable {text!r}", expected=expected) from error
    return Observable(" ".join(text.split()), kind.unit, kind.period, measure)


def torsion(positions: np.ndarray, i: int, j: int, k: int, m: int) -> np.ndarray:
    """Torsion angle (n,) of atoms i-j-k-m in radians, (-pi, pi], IUPAC sign; positions (n, N, 3)."""
    b1, b2, b3 = (positions[:, b] - positions[:, a] for a, b in ((i, j), (j, k), (k, m)))
    n1, n2 = np.cross(b1, b2), np.cross(b2, b3)
    y = (np.cross(n1, n2) * b2).sum(-1) / np.linalg.norm(b2, axis=-1)
    return np.arctan2(y, (n1 * n2).sum(-1))


def backbone_torsions(topology: mdtraj.Topology) -> dict[str, dict[int, tuple[int, int, int, int]]]:
    """Atoms of each backbone torsion: {"phi": {residue: atoms}, "psi": {residue: atoms}}, residues from 0.

    phi is C(i-1) N CA C and psi is N CA C N(i+1), between consecutive residues of one chain; caps have none.
    """
    found: dict[str, dict[int, tuple[int, int, int, int]]] = {"phi": {}, "psi": {}}
    for chain in topology.chains:
        residues = [{atom.name: atom.index for atom in residue.atoms} for residue in chain.residues]
        first = next(chain.residues).index
        for at, here in enumerate(residues):
            if not {"N", "CA", "C"} <= set(here):
                continue
            if at > 0 and "C" in residues[at - 1]:
                found["phi"][first + at] = (residues[at - 1]["C"], here["N"], here["CA"], here["C"])
            if at + 1 < len(residues) and "N" in residues[at + 1]:
                found["psi"][first + at] = (here["N"], here["CA"], here["C"], residues[at + 1]["N"])
    return found


@observable("distance", "distance I J, or distance SELECTION ; SELECTION (centres of mass)", "A")
def _distance(arguments: str, molecule: Molecule) -> Measure:
    """Distance of two atoms, or of the centres of mass of two selections."""
    parts = arguments.split(";") if ";" in arguments else arguments.split()
    if len(parts) != 2:
        raise _Unreadable(f"{len(parts)} groups of atoms instead of 2")
    if ";" in arguments:
        a, b = (_centre(molecule, _selected(part.strip(), molecule)) for part in parts)
    else:
        a, b = (_centre(molecule, np.array([atom])) for atom in _atoms(parts, molecule))
    return lambda x: np.linalg.norm(a(x) - b(x), axis=-1)


@observable("angle", "angle I J K", "rad")
def _angle(arguments: str, molecule: Molecule) -> Measure:
    """Angle at the middle of three atoms, 0 to pi."""
    i, j, k = _atoms(arguments.split(), molecule, 3)

    def measure(x: np.ndarray) -> np.ndarray:
        u, v = x[:, i] - x[:, j], x[:, k] - x[:, j]
        return np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1))

    return measure


@observable("torsion", "torsion I J K L", "rad", 2 * np.pi)
def _torsion(arguments: str, molecule: Molecule) -> Measure:
    """Torsion angle of four atoms."""
    atoms = _atoms(arguments.split(), molecule, 4)
    return lambda x: torsion(x, *atoms)


@observable("phi", "phi RESIDUE", "rad", 2 * np.pi)
def _phi(arguments: str, molecule: Molecule) -> Measure:
    return _backbone("phi", arguments, molecule)


@observable("psi", "psi RESIDUE", "rad", 2 * np.pi)
def _psi(arguments: str, molecule: Molecule) -> Measure:
    return _backbone("psi", arguments, molecule)


@observable("rg", "rg, or rg SELECTION", "A")
def _radius_of_gyration(arguments: str, molecule: Molecule) -> Measure:
    """Mass-weighted radius of gyration of all atoms or of a selection."""
    atoms = _selected(arguments, molecule) if arguments else np.arange(len(molecule.numbers))
    mass, centre = _masses(molecule, atoms), _centre(molecule, atoms)
    return lambda x: np.sqrt(((x[:, atoms] - centre(x)[:, None]) ** 2).sum(-1) @ mass)


@observable("end-to-end", "end-to-end", "A")
def _end_to_end(arguments: str, molecule: Molecule) -> Measure:
    """Distance from the first to the last alpha carbon."""
    _nothing(arguments)
    alphas = [atom.index for atom in _topology(molecule).atoms if atom.name == "CA" and atom.element.symbol == "C"]
    if len(alphas) < 2:
        raise _Unreadable(f"{len(alphas)} alpha carbons", "at least 2 amino acids")
    return lambda x: np.linalg.norm(x[:, alphas[-1]] - x[:, alphas[0]], axis=-1)


@observable("helicity", "helicity, or helicity dssp")
def _helicity(arguments: str, molecule: Molecule) -> Measure:
    """Share of residues that are helical.

    By default of those with both phi and psi, in the alpha region -100 < phi < -30, -67 < psi < -7 degrees (Best,
    Buchete, Hummer 2008). "helicity dssp": of all amino acids, in DSSP's alpha helix (H; Kabsch and Sander 1983), which
    takes at least four consecutive ones.
    """
    topology = _topology(molecule)
    if arguments.lower() == "dssp":
        return lambda x: _dssp_share(x, topology)
    _nothing(arguments)
    angles = backbone_torsions(topology)
    both = sorted(set(angles["phi"]) & set(angles["psi"]))
    if not both:
        raise _Unreadable("no residue has both phi and psi", "at least 3 residues, caps counted")

    def measure(x: np.ndarray) -> np.ndarray:
        inside = []
        for residue in both:
            phi = np.degrees(torsion(x, *angles["phi"][residue]))
            psi = np.degrees(torsion(x, *angles["psi"][residue]))
            inside.append((ALPHA_PHI[0] < phi) & (phi < ALPHA_PHI[1]) & (ALPHA_PSI[0] < psi) & (psi < ALPHA_PSI[1]))
        return np.mean(inside, axis=0)

    return measure


def _dssp_share(positions: np.ndarray, topology: mdtraj.Topology) -> np.ndarray:
    import mdtraj

    codes = mdtraj.compute_dssp(mdtraj.Trajectory(positions / 10, topology), simplified=False)
    return (codes == "H").sum(1) / np.maximum((codes != "NA").sum(1), 1)


def _backbone(name: str, arguments: str, molecule: Molecule) -> Measure:
    topology = _topology(molecule)
    angles = backbone_torsions(topology)[name]
    if not arguments.isdecimal() or int(arguments) not in angles:
        known = ", ".join(f"{index} ({topology.residue(index).name})" for index in angles)
        raise _Unreadable(f"no residue {arguments!r} with {name}", f"a residue, counted from 0: {known or 'none here'}")
    atoms = angles[int(arguments)]
    return lambda x: torsion(x, *atoms)


def _atoms(words: list[str], molecule: Molecule, count: int = 2) -> list[int]:
    atoms = len(molecule.numbers)
    if len(words) != count:
        raise _Unreadable(f"{len(words)} atoms instead of {count}")
    for word in words:
        if not word.isdecimal() or int(word) >= atoms:
            raise _Unreadable(f"no atom {word!r}", f"atom numbers 0 to {atoms - 1} (counted from 0)")
    if len(set(map(int, words))) < count:
        raise _Unreadable(f"atoms {' '.join(words)} repeat", "different atoms")
    return [int(word) for word in words]


def _selected(selection: str, molecule: Molecule) -> np.ndarray:
    topology = _topology(molecule)
    try:
        atoms = topology.select(selection)
    except Exception as error:  # mdtraj's parser raises whatever its grammar runs into
        raise _Unreadable(
            f"selection {selection!r} cannot be read ({str(error).strip().splitlines()[0] if str(error) else error!r})",
            "an mdtraj selection, e.g. 'resid 0 and name CA' (resid counts from 0)",
        ) from error
    if not len(atoms):
        raise _Unreadable(f"selection {selection!r} is empty", "one atom or more; resid counts from 0")
    return atoms


def _topology(molecule: Molecule) -> mdtraj.Topology:
    if molecule.topology is None:
        raise _Unreadable("needs residues, and this ensemble has no topology", "atom numbers instead")
    return molecule.topology


def _masses(molecule: Molecule, atoms: np.ndarray) -> np.ndarray:
    """Mass of each atom as a share of their sum."""
    from ase.data import atomic_masses

    masses = atomic_masses[molecule.numbers[atoms]]
    return masses / masses.sum()


def _centre(molecule: Molecule, atoms: np.ndarray) -> Measure:
    mass = _masses(molecule, atoms)
    return lambda x: np.einsum("a,nad->nd", mass, x[:, atoms])


def _nothing(arguments: str) -> None:
    if arguments:
        raise _Unreadable(f"does not take {arguments!r}")
