"""Start structures of peptides: all-L, peptide bonds trans or, where asked, cis, minimised; by RDKit."""

from __future__ import annotations

from typing import Any

import numpy as np

from molgen.data.peptide import RESIDUES, Peptide, tokens
from molgen.data.stereochemistry import cis_bonds, peptide_bonds, wrong_chirality
from molgen.errors import CalculatorError
from molgen.rng import sample_seed
from molgen.units import NM

ATTEMPTS = 20
_ONE_LETTER = {name: "H" if name in ("HID", "HIE", "HIP") else letter for letter, name in RESIDUES.items()}


def start_structure(peptide: Peptide, seed: int = 0, cis: np.ndarray | bool = False) -> np.ndarray:
    """A random minimised conformation (N, 3) in Angstrom, centred; the same for the same seed.

    Args:
        cis: (K,) which peptide bonds, in order, to turn to cis, or all or none of them; the others are trans.

    Raises:
        CalculatorError: RDKit found no conformation with every hand and peptide bond right.
    """
    from rdkit import rdBase
    from rdkit.Chem import AllChem

    with rdBase.BlockLogs():
        molecule, order = _molecule(peptide)
        for attempt in range(ATTEMPTS):
            number = sample_seed(seed, attempt) % 2**31
            if AllChem.EmbedMolecule(molecule, randomSeed=number, useRandomCoords=attempt > 10) < 0:
                continue
            turned = np.broadcast_to(cis, len(peptide_bonds(peptide)))
            _turn(peptide, molecule, order, turned)
            x = _minimised(peptide, molecule.GetConformer().GetPositions()[order])
            if not wrong_chirality(peptide, x) and (cis_bonds(peptide, x) == turned).all():
                return x - x.mean(0)
    raise CalculatorError(
        f"no start structure in {ATTEMPTS} attempts",
        where=f"sequence {peptide.sequence!r}",
        expected="all-L with the peptide bonds asked for",
        remedy="try another --seed",
    )


def _turn(peptide: Peptide, molecule: Any, order: list[int], cis: np.ndarray) -> None:
    """Turn every peptide bond to trans, or to cis."""
    from rdkit.Chem import rdMolTransforms

    for quadruple, to_cis in zip(peptide_bonds(peptide).tolist(), cis, strict=True):
        a, b, c, d = (order[i] for i in quadruple)
        rdMolTransforms.SetDihedralDeg(molecule.GetConformer(), a, b, c, d, 0.0 if to_cis else 180.0)


def _molecule(peptide: Peptide) -> tuple[Any, list[int]]:
    """RDKit molecule in the peptide's protonation, and the index in it of each atom of the peptide."""
    from rdkit import Chem

    letters = [_ONE_LETTER[RESIDUES[token]] for token in tokens(peptide.sequence)]
    if peptide.cap:  # ACE and NME are the ends of a longer peptide
        letters = ["G", *letters, "G"]
    molecule = Chem.RWMol(Chem.MolFromSequence("".join(letters)))
    last = len(peptide.residue_names) - 1
    renamed = {(0, "CA"): "CH3", (last, "CA"): "CH3"} if peptide.cap else {}
    heavy: dict[tuple[int, str], int] = {}
    for atom in list(molecule.GetAtoms()):
        info = atom.GetPDBResidueInfo()
        key = info.GetResidueNumber() - 1, info.GetName().strip()
        name = renamed.get(key, key[1])
        if info.GetResidueName() == "ILE":  # RDKit calls the methyl CG1
            name = {"CG1": "CG2", "CG2": "CG1"}.get(name, name)
        heavy[key[0], name] = atom.GetIdx()
    wanted = {}
    for i, (residue, name) in enumerate(zip(peptide.residue_index.tolist(), peptide.names, strict=True)):
        if peptide.numbers[i] > 1:
            wanted[i] = heavy.pop((residue, name))
            molecule.GetAtomWithIdx(wanted[i]).SetIntProp("atom", i)
    for index in sorted(heavy.values(), reverse=True):
        molecule.RemoveAtom(index)
    _protonate(peptide, molecule)
    molecule = Chem.AddHs(molecule)
    order = np.full(len(peptide), -1)
    hydrogens: dict[int, list[int]] = {}
    for i, j in peptide.bonds.tolist():
        for one, other in ((i, j), (j, i)):
            if peptide.numbers[other] == 1:
                hydrogens.setdefault(one, []).append(other)
    for atom in molecule.GetAtoms():
        if atom.GetAtomicNum() > 1:
            i = atom.GetIntProp("atom")
            order[i] = atom.GetIdx()
            own = [other.GetIdx() for other in atom.GetNeighbors() if other.GetAtomicNum() == 1]
            order[hydrogens.get(i, [])] = own
    return molecule, order.tolist()


def _protonate(peptide: Peptide, molecule: Any) -> None:
    """Hydrogens on each heavy atom as the peptide has them, formal charges to match."""
    from rdkit import Chem

    count = np.zeros(len(peptide), dtype=int)
    for i, j in peptide.bonds.tolist():
        count[i] += peptide.numbers[j] == 1
        count[j] += peptide.numbers[i] == 1
    molecule.UpdatePropertyCache(strict=False)
    ring: dict[int, int] = {}  # residue -> hydrogens its aromatic nitrogens gained together
    change: dict[int, int] = {}
    for atom in molecule.GetAtoms():
        i = atom.GetIntProp("atom")
        change[atom.GetIdx()] = gained = int(count[i]) - atom.GetTotalNumHs()
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(int(count[i]))
        if atom.GetIsAromatic():
            residue = int(peptide.residue_index[i])
            ring[residue] = ring.get(residue, 0) + gained
    for index, gained in change.items():
        atom = molecule.GetAtomWithIdx(index)
        residue = int(peptide.residue_index[atom.GetIntProp("atom")])
        if gained and not (atom.GetIsAromatic() and ring[residue] == 0):  # HID: one N gave the other its hydrogen
            atom.SetFormalCharge(gained)
    Chem.SanitizeMol(molecule)


def _minimised(peptide: Peptide, positions: np.ndarray) -> np.ndarray:
    import openmm as mm
    from openmm import unit

    context = mm.Context(peptide.system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions / NM)
    mm.LocalEnergyMinimizer.minimize(context, 10, 500)
    minimised = context.getState(getPositions=True).getPositions(asNumpy=True)
    return minimised.value_in_unit(unit.nanometer) * NM
