"""Reactions without a bond change: which conformers lie beside a saddle."""

import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from rdkit import Chem
from rdkit.Chem import AllChem, rdMolTransforms

from molgen import find_ts
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph
from molgen.geometry.shape import shape_distance, shape_rmsd
from molgen.io import load_reaction
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import refine, verify
from molgen.saddle.descent import relax
from molgen.saddle.judge import judge_wells

ACID = np.array([6, 8, 8, 1, 1])
HEAVY = [[0, 0, 0], [1.2, 0.2, 0], [-0.6, 1.2, 0], [-0.5, -0.95, 0]]


@pytest.fixture(scope="module")
def rotamers() -> tuple[np.ndarray, np.ndarray]:
    """Formic acid with its hydroxyl hydrogen away from and beside the carbonyl."""
    potential = XtbPotential(ACID)
    away, beside = (
        relax(potential, np.array([*HEAVY, h]), fmax=0.01, max_calls=100).positions
        for h in ([-1.55, 1.1, 0.0], [0.1, 1.9, 0.0])
    )
    return away, beside


def test_a_turned_hydroxyl_group_is_found(rotamers):
    potential = XtbPotential(ACID)
    found = refine(potential, np.array([*HEAVY, [-0.8, 1.5, 0.9]]), reactant=rotamers[0], product=rotamers[1])
    checked = verify(potential, found.positions, *rotamers)
    assert checked.verdict == "intended", checked.reason
    assert verify(potential, found.positions, *rotamers[::-1]).verdict == "intended"


def test_a_saddle_to_other_bonds_is_not_one_of_conformers(rotamers):
    """H between the two oxygens: the well beyond is bonded otherwise than either rotamer, in which oxygens differ."""
    potential = XtbPotential(ACID)
    guess = np.array([[0, 0, 0], [1.1, 0.65, 0], [-1.1, 0.65, 0], [0, -1.1, 0], [0, 1.35, 0]])
    found = refine(potential, guess, reactant=rotamers[1], product=rotamers[1][[0, 2, 1, 3, 4]])
    assert found.converged
    checked = verify(potential, found.positions, *rotamers)
    assert checked.verdict == "half"
    assert checked.reason == (
        "one well is the product, the other the same molecule with atoms of one element exchanged"
    )


def test_another_molecule_is_described_by_its_bonds(rotamers):
    """The acid's hydrogen on carbon, and all of it pushed together, which no few bonds describe."""
    potential, product = XtbPotential(ACID), np.array([*HEAVY, [0.5, 0.5, 1.0]])
    lost, pushed = np.array([*HEAVY, [-1.2, -0.9, 1.5]]), 0.4 * rotamers[0]
    judged = judge_wells(potential, [rotamers[0], lost], [1.0, 1.0], rotamers[0], product)
    assert judged.reason == "one well is the reactant, the other another molecule (the reactant with O2-H4 broken)"
    judged = judge_wells(potential, [rotamers[0], pushed], [1.0, 1.0], rotamers[0], product)
    assert judged.reason == "one well is the reactant, the other another molecule"


def test_other_conformers_are_said_to_be_others(rotamers):
    """The saddle of the hydroxyl's turn, where the product asked for is the reactant, bent."""
    potential = XtbPotential(ACID)
    found = refine(potential, np.array([*HEAVY, [-0.8, 1.5, 0.9]]), reactant=rotamers[0], product=rotamers[1])
    bent = rotamers[0].copy()
    bent[3, 2] += 0.4
    checked = verify(potential, found.positions, rotamers[0], bent)
    assert checked.verdict == "half"
    assert checked.reason == "one well is the reactant, the other another conformer"


def test_a_ripple_does_not_count_between_conformers(rotamers, monkeypatch):
    potential = XtbPotential(ACID)
    found = refine(potential, np.array([*HEAVY, [-0.8, 1.5, 0.9]]), reactant=rotamers[0], product=rotamers[1])
    monkeypatch.setattr(sys.modules["molgen.saddle.judge"], "LEAST_BARRIER", 0.5)  # eV; the barriers are 0.34 and 0.64
    checked = verify(potential, found.positions, *rotamers)
    assert checked.verdict == "half" and "less than 0.5 eV below the saddle" in checked.reason


def test_heavy_groups_turn_slowly():
    """1,1,2,2-tetraiodoethane from trans to gauche: one mode at 29i, and forces of 0.01 eV/A half an Angstrom away."""
    made = Chem.AddHs(Chem.MolFromSmiles("IC(I)C(I)I"))
    AllChem.EmbedMolecule(made, randomSeed=1)
    ends = []
    for angle in (180, 60):
        rdMolTransforms.SetDihedralDeg(made.GetConformer(), 0, 1, 3, 4, angle)
        ends.append(Atoms([a.GetSymbol() for a in made.GetAtoms()], made.GetConformer().GetPositions()))
    found = find_ts(*ends, samples=1)
    assert found.best.verdict == "intended", found.best.reason
    frequency = found.best.imaginary_frequency_cm
    assert frequency is not None and -50 < frequency < -10
    barriers = found.best.barrier_forward_kcal, found.best.barrier_reverse_kcal
    assert min(b for b in barriers if b is not None) > 5


def test_shape_distance_sees_a_rotamer_and_not_a_turned_methyl_group():
    ethanol = molecule("CH3CH2OH")
    bonds = bond_graph(ethanol.numbers, ethanol.positions)
    carbon = next(c for c in np.flatnonzero(ethanol.numbers == 6) if (ethanol.numbers[bonds[c]] == 1).sum() == 3)
    methyl = [int(h) for h in np.flatnonzero(bonds[carbon]) if ethanol.numbers[h] == 1]
    hydroxyl = next(int(h) for h in np.flatnonzero(ethanol.numbers == 1) if ethanol.numbers[bonds[h]] == 8)
    oxygen = int(np.flatnonzero(bonds[hydroxyl])[0])
    anchor = next(int(c) for c in np.flatnonzero(bonds[oxygen]) if c != hydroxyl)

    turned = ethanol.positions.copy()
    turned[methyl] = turned[np.roll(methyl, 1)]
    rotamer = ethanol.copy()
    rotamer.rotate(120, rotamer.positions[oxygen] - rotamer.positions[anchor], center=rotamer.positions[oxygen])
    other = ethanol.positions.copy()
    other[hydroxyl] = rotamer.positions[hydroxyl]

    z, x = ethanol.numbers, ethanol.positions
    assert shape_distance(z, bonds, x, turned) < 1e-6
    assert shape_distance(z, bonds, x, turned, exchange=False) > 1.0
    assert shape_distance(z, bonds, x, other) > 0.8


@pytest.fixture(scope="module")
def chairs() -> tuple[Atoms, Atoms]:
    """Both chairs of cyclohexane in one order of atoms, every hydrogen on its own side of the ring."""
    made = Chem.AddHs(Chem.MolFromSmiles("C1CCCCC1"))
    AllChem.EmbedMultipleConfs(made, 20, randomSeed=1)
    energies = np.array([energy for _, energy in AllChem.MMFFOptimizeMoleculeConfs(made, maxIters=2000)])
    chair = Atoms([a.GetSymbol() for a in made.GetAtoms()], made.GetConformer(int(energies.argmin())).GetPositions())
    mirrored = chair.copy()  # the other chair, its hydrogens exchanged at each carbon
    mirrored.positions *= [-1, 1, 1]
    pairs = [np.flatnonzero(row & (chair.numbers == 1)) for row in bond_graph(chair.numbers, chair.positions)[:6]]
    for a, b in pairs:
        mirrored.positions[[a, b]] = mirrored.positions[[b, a]]
    return chair, mirrored


def test_the_flip_of_a_ring_keeps_the_order_given(chairs):
    """Another order makes both chairs one structure: what is asked for is the flip."""
    reaction, notes = load_reaction(*chairs)
    assert "no bond changes: a conformational change" in notes
    assert np.array_equal(reaction.product, chairs[1].positions)
    swapped = chairs[1].copy()  # as programs that build conformers leave it: two hydrogens of a carbon exchanged
    a, b = np.flatnonzero(bond_graph(swapped.numbers, swapped.positions)[0] & (swapped.numbers == 1))
    swapped.positions[[a, b]] = swapped.positions[[b, a]]
    reaction, _ = load_reaction(chairs[0], swapped)
    assert np.abs(reaction.product - chairs[1].positions).max() < 1e-6
    with pytest.raises(InputError, match="same structure"):
        load_reaction(chairs[0], chairs[0][[2, 3, 4, 5, 0, 1, *range(6, 18)]])


def test_a_ring_flips_in_two_steps(chairs):
    found = find_ts(*chairs, samples=1, correction=None)
    assert found.mechanism is not None
    assert found.mechanism.complete
    assert [step.ends for step in found.mechanism.steps] == [
        ("reactant", "intermediate 1"),
        ("intermediate 1", "product"),
    ]
    assert found.mechanism.highest_kcal == pytest.approx(11.2, abs=0.2)  # measured: 10.8
    bonds = bond_graph(found.reaction.numbers, found.reaction.reactant)
    boat = found.mechanism.steps[0].path_positions[-1]
    far = shape_rmsd(found.reaction.numbers, bonds, found.reaction.reactant, found.reaction.product)
    assert all(
        0.2 < shape_rmsd(found.reaction.numbers, bonds, boat, end) < far
        for end in (found.reaction.reactant, found.reaction.product)
    )


def test_a_conformer_farther_off_is_not_on_the_way(rotamers):
    """A hydroxyl group turned half the way, and one turned the other way."""
    potential = XtbPotential(ACID)

    def turned(degrees: float) -> np.ndarray:
        acid = Atoms(ACID, rotamers[1])
        acid.rotate_dihedral(1, 0, 2, 4, degrees, indices=[4])
        return acid.positions

    for well, product, known in ((90, 180, "reactant"), (-60, 90, "")):
        judged = judge_wells(potential, [turned(0), turned(well)], [1.0, 1.0], turned(0), turned(product))
        assert judged.reason == "one well is the reactant, the other another conformer"
        assert judged.known == known
