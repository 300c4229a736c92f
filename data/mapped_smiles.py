"""Atom-mapped SMILES of a reaction given as geometry, for people and for filters; geometry stays what counts."""

from __future__ import annotations

import numpy as np

from molgen.data.elementary import VALENCES, pi_bonds

_ELECTRONEGATIVITY = {
    1: 2.2,
    5: 2.0,
    6: 2.6,
    7: 3.0,
    8: 3.4,
    9: 4.0,
    14: 1.9,
    15: 2.2,
    16: 2.6,
    17: 3.2,
    35: 3.0,
    53: 2.7,
}


def reaction_smiles(numbers, bonds_r: np.ndarray, bonds_p: np.ndarray, charge: int = 0) -> str:
    """Atom-mapped "reactant>>product" with explicit hydrogens; atom k of the arrays has map number k + 1.

    Bond orders are those of one Lewis structure with as many multiple bonds as the valences allow; no stereo labels.
    """
    return ">>".join(_side(np.asarray(numbers), bonds, charge) for bonds in (bonds_r, bonds_p))


def _side(numbers: np.ndarray, bonds: np.ndarray, charge: int) -> str:
    from rdkit import Chem

    extra = pi_bonds(numbers, bonds)
    molecule = Chem.RWMol()
    for k, (z, q) in enumerate(zip(numbers, formal_charges(numbers, bonds, extra, charge), strict=True)):
        atom = Chem.Atom(int(z))
        atom.SetAtomMapNum(k + 1)
        atom.SetFormalCharge(int(q))
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    kinds = {0: Chem.BondType.SINGLE, 1: Chem.BondType.DOUBLE, 2: Chem.BondType.TRIPLE}
    for i, j in zip(*np.nonzero(np.triu(bonds, 1)), strict=True):
        molecule.AddBond(int(i), int(j), kinds[min(extra.get((int(i), int(j)), 0), 2)])
    return Chem.MolToSmiles(molecule)


def formal_charges(numbers: np.ndarray, bonds: np.ndarray, extra: dict, charge: int) -> np.ndarray:
    """Formal charges (N,) that sum to `charge` where the valences allow.

    +1 for each neighbour above the valence, then -1 on the most electronegative atoms short of one, or +1 on the least;
    what is left stays a radical or carbene centre.
    """
    used = bonds.sum(1).astype(int)
    for (i, j), order in extra.items():
        used[i] += order
        used[j] += order
    lack = np.array([VALENCES.get(int(z), (int(u), 0))[0] for z, u in zip(numbers, used, strict=True)]) - used
    charges = np.maximum(-lack, 0)
    short = sorted(np.flatnonzero(lack > 0), key=lambda k: (-_ELECTRONEGATIVITY.get(int(numbers[k]), 0), k))
    for k in short:
        while lack[k] > 0 and charges.sum() > charge:
            charges[k] -= 1
            lack[k] -= 1
    for k in reversed(short):
        while lack[k] > 0 and charges.sum() < charge:
            charges[k] += 1
            lack[k] -= 1
    return charges
