"""Stereoisomers of one molecule, and verdicts that name them."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from rdkit import Chem
from rdkit.Chem import AllChem

from molgen import find_ts
from molgen.geometry.bonds import bonding_differences
from molgen.geometry.chirality import stereo_differences
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import verify
from molgen.saddle.judge import judge_wells
from molgen.saddle.modes import Modes
from molgen.workflows.ts_result import Candidate, ranked


def built(smiles: str, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(made, randomSeed=seed)
    return np.array([atom.GetAtomicNum() for atom in made.GetAtoms()]), made.GetConformer().GetPositions()


@pytest.mark.parametrize(
    ("one", "other", "where"),
    [
        ("C/C=C/C", "C/C=C\\C", ["C1=C2"]),
        ("C/N=C/C", "C/N=C\\C", ["N1=C2"]),
        ("F[C@H](C)Cl", "F[C@@H](C)Cl", ["C1"]),
        ("F[C@H](C)/C=C/C", "F[C@@H](C)/C=C\\C", ["C1", "C3=C4"]),
        ("F[C@H](C)[C@H](F)C", "F[C@H](C)[C@@H](F)C", ["C3"]),
        ("C[C@H]1C[C@@H](C)C1", "C[C@H]1C[C@H](C)C1", ["C3"]),  # centres only beside each other
        ("C[C@H]1CC[C@@H](C)CC1", "C[C@H]1CC[C@H](C)CC1", ["C4"]),
        ("OC[C@H](O)[C@@H](O)[C@H](O)CO", "OC[C@H](O)[C@H](O)[C@H](O)CO", ["C4"]),
        ("C[S@](=O)CC", "C[S@@](=O)CC", ["S1"]),
        ("C[P@](CC)CCC", "C[P@@](CC)CCC", ["P1"]),
    ],
)
def test_isomers_are_told_apart(one, other, where):
    numbers, a = built(one)
    _, b = built(other)
    assert stereo_differences(numbers, a, b) == where
    assert stereo_differences(numbers, a, a) == []


@pytest.mark.parametrize(
    "smiles",
    [
        "CC(=O)NC",
        "C=CC=C",
        "CCCC",
        "OC(=O)C=C",
        "C1CCCCC1",
        "c1ccccc1C",
        "C=C=CC",
        "CC(C)(C)O",
        "C[C@H]1C[C@@H](C)C1",
        "OC[C@H](O)[C@@H](O)[C@H](O)CO",
        "CC(C)(C)C(C)(C)C",
        "CS(=O)C",
    ],
)
def test_conformers_are_one_stereoisomer(smiles):
    """Amide bonds, single bonds between double ones, methyl groups and mirror images of them."""
    numbers, a = built(smiles)
    for seed in range(2, 6):
        assert stereo_differences(numbers, a, built(smiles, seed)[1]) == []
    assert stereo_differences(numbers, a, a * [1, 1, -1]) == []


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [0, 1, 4, 5, 2, 3], [1, 0, 4, 3, 2, 5]])
def test_a_strained_double_bond_is_told_whatever_the_order_of_atoms(order):
    """As in trans-cyclohexene: carbons a quarter turn apart, hydrogens opposite."""

    def bond(carbon: float, hydrogen: float) -> np.ndarray:
        x = np.zeros((6, 3))
        x[1, 0] = 1.34
        turns = {2: (0, 0.0, 1.5), 3: (1, carbon, 1.5), 4: (0, 180.0, 1.09), 5: (1, hydrogen, 1.09)}
        for k, (on, turn, length) in turns.items():
            away = np.array([(-0.5, 0.5)[on], *(np.sqrt(0.75) * np.array([np.cos(a := np.radians(turn)), np.sin(a)]))])
            x[k] = x[on] + length * away
        return x[order]

    numbers = np.array([6, 6, 6, 6, 1, 1])[order]
    cis, strained = bond(0.0, 180.0), bond(270.0, 0.0)
    assert stereo_differences(numbers, cis, strained) == ["C0=C1"]
    assert stereo_differences(numbers, cis, bond(20.0, 200.0)) == []


def test_linear_h3_is_neither_hydrogen_and_atom():
    chain, apart = np.zeros((3, 3)), np.zeros((3, 3))
    chain[:, 0], apart[:, 0] = [0, 1.05, 2.10], [0, 0.78, 3.5]
    assert bonding_differences([1, 1, 1], chain, apart) > 0
    stretched = apart.copy()
    stretched[1, 0] += 0.1
    assert bonding_differences([1, 1, 1], stretched, apart) == 0


def test_a_crossing_of_states_is_no_saddle():
    numbers, x = built("C=C")
    modes = Modes(np.array([-4091.0, 300.0]), np.zeros((2, 6, 3)), np.zeros((18, 18)), 0.0, 0)
    found = verify(XtbPotential(numbers), x, x, x + 1, modes=modes)
    assert found.verdict == "not_a_saddle" and "4091i cm-1 is no motion of nuclei" in found.reason


def test_the_stereoisomers_given_come_first():
    atoms = Atoms("H", [[0, 0, 0]])
    other = Candidate(atoms, "TS-GEN", 0, verdict="intended", confidence=0.9, stereo="another stereoisomer")
    given = Candidate(atoms, "TS-GEN", 1, verdict="intended", confidence=0.2)
    half = Candidate(atoms, "TS-GEN", 2, verdict="half", confidence=0.99)
    assert ranked([half, other, given]) == [given, other, half]


def test_a_saddle_may_join_any_isomer_that_a_smiles_leaves_open():
    """Fluoroethenol is built *cis*; the saddle of the *trans* isomer lies lower, and nobody asked for either."""
    result = find_ts(smiles="FC=CO>>FCC=O")
    reaction, best = result.reaction, result.best
    assert reaction.open_stereo == ({"C1=C2"}, set()) and reaction.reversed.open_stereo == (set(), {"C1=C2"})
    assert result.verified and not best.stereo
    assert "the reactant is another isomer than was built, as its SMILES leaves C1=C2 open" in best.reason
    assert best.barrier_forward_kcal == pytest.approx(63.8, abs=0.5)
    wells = [best.path_positions[0], best.path_positions[-1]]
    assert stereo_differences(reaction.numbers, reaction.reactant, wells[0]) == ["C1=C2"]
    judged = judge_wells(XtbPotential(reaction.numbers), wells, [1.0, 1.0], reaction.reactant, reaction.product)
    assert judged.stereo == "another stereoisomer of the reactant than was given (C1=C2)"


def test_barriers_of_all_intended_candidates_are_from_relaxed_wells():
    """Acetone and its enol: several saddles, by the turns of the methyl group."""
    result = find_ts(smiles="CC(=O)C>>C=C(O)C", samples=6)
    intended = [c for c in result.candidates if c.verdict == "intended"]
    assert len(intended) > 1 and all(c.barrier_forward_kcal is not None for c in intended)
    for c in intended:
        ends = c.path_positions[[0, -1]]
        forces = XtbPotential(result.reaction.numbers).energy_and_forces(ends)[1]
        assert np.linalg.norm(forces, axis=-1).max() < 0.011
    assert all(c.barrier_forward_kcal is None for c in result.candidates if c.verdict != "intended")
