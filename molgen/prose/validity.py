"""Whether conformations are still the peptide they should be: handedness, bonds, contacts, cis peptide bonds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from molgen.data.peptide import Peptide
from molgen.data.stereochemistry import before_proline, cis_bonds, wrong_chirality
from molgen.errors import InputError
from molgen.geometry.bonds import TOLERANCE, radius_sums

# Times the force field's length. T-REMD of 129 peptides at 310 to 600 K (103,200 frames) spans 0.837 to 1.211; its
# closest pair without a bond is 0.45 A above the sum of the covalent radii, and bond_graph draws a bond below 0.3.
SHORTEST, LONGEST = 0.75, 1.25
_CHUNK = 200_000  # pair distances at once: what fits a cache


@dataclass(frozen=True, eq=False)
class Validity:
    """Verdicts on n conformations; a coordinate that is not finite is a broken topology.

    Attributes:
        wrong_chirality: (n,) any centre of the wrong hand: CA of every residue but GLY, CB of ILE and THR.
        bad_bond: (n,) any bond outside 0.75 to 1.25 times its force-field length.
        contact: (n,) any two atoms that are not bonded but so close that they would read as bonded.
        cis: (n, K) peptide bonds, |omega| < 90 degrees; not an error. proline: (K,) whether the bond precedes PRO.
    """

    wrong_chirality: np.ndarray
    bad_bond: np.ndarray
    contact: np.ndarray
    cis: np.ndarray
    proline: np.ndarray

    @property
    def broken_topology(self) -> np.ndarray:
        """(n,) any bad bond or contact."""
        return self.bad_bond | self.contact

    @property
    def valid(self) -> np.ndarray:
        """(n,) right hand and whole topology."""
        return ~(self.wrong_chirality | self.broken_topology)

    def take(self, index: np.ndarray) -> Self:
        """The verdicts on the conformations at `index`."""
        names = [field.name for field in fields(self) if field.name != "proline"]
        return type(self)(**{name: getattr(self, name)[index] for name in names}, proline=self.proline)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything by name, for npz; `of_arrays` reads it back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of_arrays(cls, parts: Sequence[Mapping[str, np.ndarray]]) -> Self:
        """The verdicts that one or more `arrays` came from, one part after another; other keys are ignored.

        Raises:
            KeyError: an array is missing.
        """
        names = [field.name for field in fields(cls) if field.name != "proline"]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return cls(**joined, proline=np.asarray(parts[0]["proline"]))

    def summary(self, weights: ArrayLike | None = None) -> dict[str, Any]:
        """Counts of each fault among the n samples, and their shares; `weights` (n,) adds the weighted shares.

        `cis` and `cis_proline` are shares of all the peptide bonds of their kind, None where there are none.
        """
        faults = {name: getattr(self, name) for name in ("wrong_chirality", "broken_topology", "bad_bond", "contact")}
        out: dict[str, Any] = {"n": len(self.contact)}
        out |= {name: int(fault.sum()) for name, fault in faults.items()}
        for suffix, w in (("", None),) if weights is None else (("", None), ("_reweighted", np.asarray(weights))):
            out |= {f"share_{name}{suffix}": float(np.average(fault, weights=w)) for name, fault in faults.items()}
            for name, kind in (("cis", ~self.proline), ("cis_proline", self.proline)):
                share = np.average(self.cis[:, kind].mean(1), weights=w) if kind.any() else None
                out[name + suffix] = None if share is None else float(share)
        return out


def validate(peptide: Peptide, positions: ArrayLike) -> Validity:
    """Check conformations of a peptide of L amino acids.

    Args:
        peptide: the molecule.
        positions: (n, N, 3) Angstrom, atoms in the peptide's order.

    Raises:
        InputError: positions of another shape.
    """
    x = np.asarray(positions, dtype=float)
    if x.ndim != 3 or x.shape[1:] != (len(peptide), 3):
        raise InputError(
            f"positions have shape {x.shape}",
            where=f"validate, {peptide.sequence}",
            expected=f"(n, {len(peptide)}, 3) in Angstrom, atoms in the peptide's order",
        )
    lost = np.logical_not(np.isfinite(x).all((1, 2)))
    x = np.where(lost[:, None, None], 0.0, x)
    bad_bond, contact = _topology(peptide, x)
    return Validity(
        wrong_chirality=wrong_chirality(peptide, x) & ~lost,
        bad_bond=bad_bond | lost,
        contact=contact & ~lost,
        cis=cis_bonds(peptide, x) & ~lost[:, None],
        proline=before_proline(peptide),
    )


def _topology(peptide: Peptide, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bonds out of range, (n,) pairs too close."""
    n = len(peptide)
    least = np.square(radius_sums(peptide.numbers) + TOLERANCE)
    b, c = peptide.bonds.T
    least[b, c] = least[c, b] = 0.0
    np.fill_diagonal(least, 0.0)
    length = peptide.parameters.bond_length
    bad, contact = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=bool)
    step = max(_CHUNK // n**2, 1)
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        ratio = np.linalg.norm(x[rows, b] - x[rows, c], axis=-1) / length
        bad[rows] = ((ratio < SHORTEST) | (ratio > LONGEST)).any(1)
        square = np.zeros((len(ratio), n, n))
        for axis in np.moveaxis(x[rows], -1, 0):
            gap = axis[:, :, None] - axis[:, None, :]
            square += np.square(gap, out=gap)
        contact[rows] = (square < least).any((1, 2))
    return bad, contact
