"""Variables of molecules with residues, and of groups of atoms: phi, psi, radius of gyration, helicity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.variables.cv import CV, norm
from molgen.variables.of_atoms import torsion

if TYPE_CHECKING:
    import mdtraj

# Best, Buchete, Hummer, Biophys. J. 95 (2008) L07: the right-handed alpha region, degrees
ALPHA_PHI, ALPHA_PSI = (-100.0, -30.0), (-67.0, -7.0)


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


def backbone(name: str, residue: str, topology: mdtraj.Topology) -> CV:
    """The torsion `name`, "phi" or "psi", of the residue of that number."""
    angles = backbone_torsions(topology)[name]
    if not residue.isdecimal() or int(residue) not in angles:
        known = ", ".join(f"{index} ({topology.residue(index).name})" for index in angles)
        raise InputError(
            f"no residue {residue!r} with {name}", expected=f"a residue, counted from 0: {known or 'none here'}"
        )
    return torsion(*angles[int(residue)])


def centre_distance(a: Sequence[int], b: Sequence[int], numbers: np.ndarray) -> CV:
    """Distance of the centres of mass of the atoms `a` and `b`, Angstrom."""
    first, second = _centre(numbers, a), _centre(numbers, b)
    return CV("distance", "A", None, lambda x: norm(first(x) - second(x)))


def radius_of_gyration(atoms: Sequence[int], numbers: np.ndarray) -> CV:
    """Mass-weighted radius of gyration of some atoms, Angstrom."""
    mass, centre, chosen = _masses(numbers, atoms), _centre(numbers, atoms), list(atoms)
    return CV("rg", "A", None, lambda x: (((x[:, chosen] - centre(x)[:, None]) ** 2).sum(-1) @ mass).sqrt())


def end_to_end(topology: mdtraj.Topology) -> CV:
    """Distance from the first to the last alpha carbon, Angstrom."""
    alphas = [atom.index for atom in topology.atoms if atom.name == "CA" and atom.element.symbol == "C"]
    chains = {topology.atom(alpha).residue.chain.index for alpha in alphas}
    if len(chains) > 1:
        raise InputError(
            f"amino acids of {len(chains)} chains", expected="one peptide",
            remedy="name its ends: distance resid 0 and name CA ; resid 4 and name CA",
        )  # fmt: skip
    if len(alphas) < 2:
        raise InputError(
            f"{len(alphas)} alpha carbons", expected="at least 2 amino acids",
            remedy="name two atoms: distance I J; or take rg",
        )  # fmt: skip
    return CV("end-to-end", "A", None, lambda x: norm(x[:, alphas[-1]] - x[:, alphas[0]]))


def helicity(topology: mdtraj.Topology) -> CV:
    """Share of residues, of those with both torsions, in the alpha region: -100 < phi < -30, -67 < psi < -7 degrees.

    A step function: without gradient. Source: Best, Buchete, Hummer 2008.
    """
    angles = backbone_torsions(topology)
    both = sorted(set(angles["phi"]) & set(angles["psi"]))
    if not both:
        raise InputError(
            "no residue has both phi and psi", expected="at least 3 residues, caps counted",
            remedy="take phi or psi of the residues that have one",
        )  # fmt: skip
    pairs = [[torsion(*angles[name][residue]) for name in ("phi", "psi")] for residue in both]

    def inside(x: Tensor, cv: CV, limits: tuple[float, float]) -> Tensor:
        value = torch.rad2deg(cv.function(x))
        return (limits[0] < value) & (value < limits[1])

    def function(x: Tensor) -> Tensor:
        helical = [inside(x, phi, ALPHA_PHI) & inside(x, psi, ALPHA_PSI) for phi, psi in pairs]
        return torch.stack(helical).double().mean(0)

    return CV("helicity", "", None, function)


def helicity_dssp(topology: mdtraj.Topology) -> CV:
    """Share of all amino acids in DSSP's alpha helix (H; Kabsch and Sander 1983), which takes at least four in a row.

    Without gradient.
    """

    def function(x: Tensor) -> Tensor:
        import mdtraj

        frames = mdtraj.Trajectory(x.detach().numpy() / 10, topology)
        codes = mdtraj.compute_dssp(frames, simplified=False)
        return torch.from_numpy((codes == "H").sum(1) / np.maximum((codes != "NA").sum(1), 1))

    return CV("helicity dssp", "", None, function)


def _masses(numbers: np.ndarray, atoms: Sequence[int]) -> Tensor:
    """Mass of each atom as a share of their sum."""
    from ase.data import atomic_masses

    masses = torch.from_numpy(atomic_masses[np.asarray(numbers)[list(atoms)]])
    return masses / masses.sum()


def _centre(numbers: np.ndarray, atoms: Sequence[int]) -> Callable[[Tensor], Tensor]:
    mass, chosen = _masses(numbers, atoms), list(atoms)
    return lambda x: torch.einsum("a,nad->nd", mass, x[:, chosen])
