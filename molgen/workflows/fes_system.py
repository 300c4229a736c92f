"""The molecule of a free-energy run: its energies, the structures it starts from, what is equivalent in it."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from molgen.errors import InputError, check_counts
from molgen.geometry.bonds import atom_classes, bond_graph
from molgen.geometry.chirality import signed_volumes, tetrahedral_quadruples
from molgen.potentials.ase import calculator_from_spec, with_solvent
from molgen.potentials.base import Potential
from molgen.structures import check_positions, checked_spin, doubt_of_charge, read_side, total_charge
from molgen.units import NM
from molgen.variables import Molecule

if TYPE_CHECKING:
    import mdtraj
    from openmm import app

SOLVENTS = {"none": None, "obc2": "implicit/obc2.xml"}  # of a force field
HEAVIEST_INVERTIBLE = 9  # atomic number
PYRAMID = 0.3  # Angstrom above its three neighbours, where an atom is a pyramid: 0.38 in ammonia, 0.2 in aniline
SATURATED = {6: 4, 7: 3, 8: 2}  # neighbours, by atomic number
MOST_QUADRUPLES = 40  # signed volumes that a controller sees


@dataclass(frozen=True, eq=False)
class System:
    """A molecule with energies.

    Attributes:
        potential: of it. starts: (S, N, 3) Angstrom, one structure for each known basin. topology: mdtraj's, or None.
        source: how to build the potential again, as JSON can hold it; None where that is unknown.
        notes: what was decided about the input, for people.
    """

    potential: Potential
    starts: np.ndarray
    topology: mdtraj.Topology | None = None
    source: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def numbers(self) -> np.ndarray:
        """(N,) atomic numbers."""
        return self.potential.numbers

    def molecule(self, known: Mapping[str, np.ndarray] | None = None) -> Molecule:
        """What the texts of variables and walls refer to; `known` structures take the place of files."""
        return Molecule(self.numbers, self.topology, known=known)

    @property
    def bonds(self) -> np.ndarray:
        """(N, N) bonds that all starts share."""
        return np.logical_and.reduce([bond_graph(self.numbers, x) for x in self.starts])

    def exchangeable(self, fixed: Collection[int]) -> list[list[int]]:
        """Groups of atoms that may be exchanged: hydrogens (or halogens) on one centre, in all starts alike.

        Args:
            fixed: atoms that a collective variable or a wall singles out.
        """
        if len(self.numbers) < 2:
            return []
        bonds = self.bonds
        colours = [atom_classes(self.numbers, bond_graph(self.numbers, x))[-1] for x in self.starts]
        groups: dict[tuple, list[int]] = {}
        for atom in np.flatnonzero(bonds.sum(1) == 1):
            if int(atom) not in fixed:
                key = (int(np.flatnonzero(bonds[atom])[0]), *(colour[atom] for colour in colours))
                groups.setdefault(key, []).append(int(atom))
        return [group for group in groups.values() if len(group) > 1]

    def stereocentres(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, 4) neighbours of the centres that are handed, and the signs (Q,) of their volumes in the first start.

        A centre with two neighbours of one kind, or that not all starts share, has no hand.
        """
        quadruples = tetrahedral_quadruples(self.bonds) if len(self.numbers) > 4 else np.zeros((0, 4), dtype=int)
        colour = atom_classes(self.numbers, self.bonds)[-1] if len(quadruples) else []
        handed = np.array([len({colour[a] for a in q}) == 4 for q in quadruples], dtype=bool)
        quadruples = quadruples[handed]
        volumes = signed_volumes(self.starts, quadruples)
        same = (volumes * volumes[:1] > 0).all(0) if len(quadruples) else np.zeros(0, dtype=bool)
        return quadruples[same], np.sign(volumes[0])[same] if len(quadruples) else np.zeros(0)

    def invertible(self) -> list[int]:
        """Atoms of the second row with three neighbours that form a pyramid and turn inside out within nanoseconds or
        less, such as an amine's nitrogen; those of lower rows keep their hand.

        Nitrogen and oxygen are ones unless a neighbour is unsaturated, as in amides, anilines and nitro groups, however
        flat a start may be; others where they are a pyramid in a start.
        """
        bonds, found = self.bonds, []
        unsaturated = np.array([n < SATURATED.get(int(z), 0) for z, n in zip(self.numbers, bonds.sum(1), strict=True)])
        for atom in np.flatnonzero((bonds.sum(1) == 3) & (self.numbers <= HEAVIEST_INVERTIBLE)):
            corner, one, two, three = (self.starts[:, k] for k in (atom, *np.flatnonzero(bonds[atom])))
            normal = np.cross(two - one, three - one)
            height = np.abs(((corner - one) * normal).sum(-1)) / np.linalg.norm(normal, axis=-1)
            lone_pair = self.numbers[atom] in (7, 8) and not unsaturated[bonds[atom]].any()
            if lone_pair or height.max() > PYRAMID:
                found.append(int(atom))
        return found

    def chains(self) -> np.ndarray:
        """(Q, 4) one torsion around each bond of two atoms that have other neighbours, heavy ones where possible."""
        bonds, found = self.bonds, []
        for j, k in np.argwhere(np.triu(bonds)):
            ends = [
                sorted((a for a in np.flatnonzero(bonds[here]) if a != other), key=lambda a: (self.numbers[a] == 1, a))
                for here, other in ((j, k), (k, j))
            ]
            if ends[0] and ends[1]:
                found.append((ends[0][0], j, k, ends[1][0]))
        return np.array(found[:MOST_QUADRUPLES], dtype=int).reshape(-1, 4)


def system_from_files(
    paths: str | Path | Sequence[str | Path],
    calculator: str = "gfn2",
    kwargs: Mapping[str, Any] | None = None,
    charge: int | None = None,
    spin: int | None = None,
    solvent: str | None = None,
) -> System:
    """A molecule by one structure file a basin and a calculator, "gfn2" or as `--calculator`.

    Args:
        charge: e; None: what the input says (sdf and mol files, `charge=` in the comment of an xyz file,
            `info["charge"]` of Atoms), else 0. spin: unpaired electrons; None for the fewest
            possible. solvent: implicit, of xTB, such as "water"; None for the gas phase.

    Raises:
        InputError: no file, unreadable ones, or of different molecules; no such calculator.
    """
    check_counts(charge=(charge, None), spin=(spin, 0))
    read = [read_side(path, "--xyz") for path in _listed(paths, "--xyz")]
    for other in read[1:]:
        if not np.array_equal(other.numbers, read[0].numbers):
            raise InputError(
                "holds other atoms, or in another order, than the first structure",
                where=other.where,
                expected=f"the atoms of {read[0].where} in the same order",
            )
    charge, told = total_charge(charge, read)
    asked, spin = spin, checked_spin(read[0].numbers, charge, spin)
    kwargs = with_solvent(calculator, kwargs, solvent)
    potential = calculator_from_spec(calculator, kwargs, read[0].numbers, charge, spin)
    source = {"calculator": calculator, "kwargs": kwargs, "charge": charge, "spin": spin}
    notes = (*(note for part in read for note in part.notes), *told, *doubt_of_charge(charge, spin, asked))
    return System(potential, np.stack([part.positions for part in read]), source=source, notes=notes)


def system_from_pdb(
    paths: str | Path | Sequence[str | Path],
    forcefield: str | Sequence[str] = "amber14/protein.ff14SB.xml",
    solvent: str = "obc2",
    platform: str = "auto",
) -> System:
    """A molecule by PDB files with all hydrogens and an OpenMM force field; GB OBC2 as OpenMM's native force.

    Args:
        paths: a file, or one a basin. forcefield: a file that OpenMM finds, or several.
        solvent: "obc2" or "none".

    Raises:
        InputError: a file is missing or unreadable, atoms differ, or the force field does not know a residue.
    """
    from openmm import app, unit

    if solvent not in SOLVENTS:
        raise InputError(f"unknown solvent {solvent!r}", where="--solvent", expected=" or ".join(SOLVENTS))
    paths = _listed(paths, "--pdb")
    forcefield = [forcefield] if isinstance(forcefield, str) else forcefield
    files = []
    for path in paths:
        try:
            files.append(app.PDBFile(str(path)))
        except Exception as error:  # OpenMM's reader raises whatever its parsing meets
            raise InputError(
                f"cannot be read ({error})", where=str(path), expected="a PDB file of a molecule"
            ) from error
    if len({file.topology.getNumAtoms() for file in files}) != 1:
        raise InputError("the files hold different numbers of atoms", where="--pdb", expected="one molecule")
    named = [[(a.element, a.name, a.residue.name) for a in file.topology.atoms()] for file in files]
    for path, names in zip(paths, named, strict=True):
        if others := [k for k, pair in enumerate(zip(names, named[0], strict=True)) if pair[0] != pair[1]]:
            other, (here, there) = others[0], (" of ".join(atoms[others[0]][1:]) for atoms in (names, named[0]))
            raise InputError(
                f"atom {other} is {here}, in {paths[0]} it is {there}", where=str(path),
                expected="the same atoms, in the same order",
            )  # fmt: skip
    starts = np.stack([file.getPositions(asNumpy=True).value_in_unit(unit.nanometer) * NM for file in files])
    for path, start in zip(paths, starts, strict=True):
        check_positions(start, str(path))
    several = [(path, file.getNumFrames()) for path, file in zip(paths, files, strict=True) if file.getNumFrames() > 1]
    notes = tuple(f"{path}: the first of {count} models is used" for path, count in several)
    return replace(_force_field(files[0].topology, starts, forcefield, solvent, platform), notes=notes)


def _listed(paths: Any, where: str) -> list[Any]:
    """One file, or several, as a list.

    Raises:
        InputError: none, or no files at all.
    """
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    if not isinstance(listed, Iterable) or not (files := list(listed)):
        what = "no structure" if isinstance(listed, Iterable) else f"{paths!r} given"
        raise InputError(what, where=where, expected="a file, or one for each known basin")
    return files


def system_from_source(source: Mapping[str, Any], numbers: np.ndarray, starts: np.ndarray) -> System:
    """The system that had this `source`, with other `starts` (S, N, 3), Angstrom."""
    if "calculator" in source:
        potential = calculator_from_spec(
            source["calculator"], source["kwargs"], numbers, source["charge"], source["spin"]
        )
        return System(potential, starts, source=dict(source))
    from openmm import app

    topology = app.PDBFile(io.StringIO(source["topology"])).topology
    return _force_field(topology, starts, source["forcefield"], source["solvent"], source["platform"])


def _force_field(
    topology: app.Topology, starts: np.ndarray, forcefield: Sequence[str], solvent: str, platform: str
) -> System:
    import mdtraj
    from openmm import app, unit

    from molgen.potentials.openmm import OpenMMPotential, native_gbsa

    implicit = SOLVENTS[solvent]
    try:
        field = app.ForceField(*forcefield, *([implicit] if implicit else []))
        system = field.createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False)
    except (ValueError, OSError) as error:
        raise InputError(
            str(error), where=f"force field {', '.join(forcefield)}",
            expected="files that OpenMM finds, and a PDB with all hydrogens and names they know",
            remedy="add hydrogens first (openmm.app.Modeller.addHydrogens), or choose another --forcefield",
        ) from error  # fmt: skip
    potential = OpenMMPotential(native_gbsa(system) if implicit else system, topology, platform)
    text = io.StringIO()
    app.PDBFile.writeFile(topology, starts[0] * unit.angstrom, text, keepIds=True)
    source = {"forcefield": list(forcefield), "solvent": solvent, "platform": platform, "topology": text.getvalue()}
    return System(potential, starts, mdtraj.Topology.from_openmm(topology), source)
