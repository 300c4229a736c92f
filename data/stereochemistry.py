"""Handedness and peptide bonds of conformations of L peptides."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from molgen.data.peptide import Peptide
from molgen.geometry.chirality import signed_volumes

# Seen from H, the other three turn clockwise: L residues at CA (2S; 2R for CYS), and (3S)-ILE, (3R)-THR at CB.
_CENTRES = {("CA", None): ("N", "C", "CB"), ("CB", "ILE"): ("CA", "CG1", "CG2"), ("CB", "THR"): ("CA", "OG1", "CG2")}


def chiral_centres(peptide: Peptide) -> np.ndarray:
    """(C, 5) atoms: the centre, its hydrogen, and its other neighbours clockwise as seen from the hydrogen."""
    rows = []
    for place, residue in zip(_by_name(peptide), peptide.residue_names, strict=True):
        for (centre, kind), (a, b, c) in _CENTRES.items():
            if {centre, a, b, c} <= place.keys() and kind in (None, residue):
                rows.append([place[name] for name in (centre, f"H{centre[1:]}", a, b, c)])
    return np.array(rows, dtype=np.int64).reshape(-1, 5)


def wrong_chirality(peptide: Peptide, positions: np.ndarray) -> np.ndarray:
    """(...) whether any centre has the wrong hand in positions (..., N, 3): CA, and CB of ILE and THR.

    The centre or its hydrogen stands on the wrong side of the plane of the other three.
    """
    centres = chiral_centres(peptide)
    quadruples = np.concatenate([centres[:, [0, 2, 3, 4]], centres[:, [1, 2, 3, 4]]])
    return np.any(signed_volumes(positions, quadruples) <= 0, axis=-1)


def peptide_bonds(peptide: Peptide) -> np.ndarray:
    """(K, 4) atoms CA, C, N, CA of the peptide bonds in order; CH3 stands for CA in caps."""
    ends = [{"CA": atoms.get("CA", atoms.get("CH3", -1))} | atoms for atoms in _by_name(peptide)]
    rows = [[left["CA"], left["C"], right["N"], right["CA"]] for left, right in pairwise(ends)]
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


def cis_bonds(peptide: Peptide, positions: np.ndarray) -> np.ndarray:
    """(..., K) whether a peptide bond is cis, |omega| < 90 degrees, in positions (..., N, 3)."""
    corners = np.asarray(positions, dtype=float)[..., peptide_bonds(peptide), :]
    a, b, c, d = np.moveaxis(corners, -2, 0)
    axis = c - b  # |omega| < 90 degrees: both ends on one side of the bond
    left, right = np.cross(a - b, axis), np.cross(d - c, axis)
    return (left * right).sum(-1) > 0


def turned_bonds(peptide: Peptide, positions: np.ndarray) -> np.ndarray:
    """(n,) whether a peptide bond that is not before proline is cis in positions (n, N, 3); dynamics do not turn it."""
    return np.asarray(cis_bonds(peptide, positions)[:, ~before_proline(peptide)].any(axis=1))


def before_proline(peptide: Peptide) -> np.ndarray:
    """(K,) whether the residue after each peptide bond is proline: the bond that is often cis."""
    return np.array([name == "PRO" for name in peptide.residue_names[1:]], dtype=bool)


def _by_name(peptide: Peptide) -> list[dict[str, int]]:
    """Index by name of the atoms of each residue."""
    found: list[dict[str, int]] = [{} for _ in peptide.residue_names]
    for i, (residue, name) in enumerate(zip(peptide.residue_index.tolist(), peptide.names, strict=True)):
        found[residue][name] = i
    return found
