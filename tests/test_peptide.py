"""Peptides from sequences: names, order, bonds and energies of the development MD set, parameters, and bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from molgen.data.md import load_md
from molgen.data.peptide import build_peptide
from molgen.errors import InputError
from molgen.potentials.parallel import ParallelPotential
from molgen.units import KJ_MOL

EVERY = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(scope="module")
def md_files(shared):
    files = sorted((shared / "data" / "peptides_md").glob("*.npz"))
    if not files:
        pytest.skip("no peptides_md")
    return files


def test_names_order_and_bonds_of_every_file(md_files):
    for file in md_files:
        peptide = build_peptide(file.stem)
        with np.load(file) as data:
            assert list(peptide.labels) == data["names"].tolist(), file.stem
            assert {*map(tuple, np.sort(data["bonds"], axis=1).tolist())} == {*map(tuple, peptide.bonds.tolist())}


def test_energies_of_the_set_within_its_rounding(md_files):
    mean = []
    for file in md_files[::9]:
        md = load_md(file)
        frames, energies = md.positions[:, ::40].reshape(-1, *md.positions.shape[2:]), md.energies[:, ::40].ravel()
        error = (md.peptide.potential("Reference").energy(frames) - energies) / KJ_MOL
        assert np.abs(error).max() < 0.8, file.stem
        mean.append(error.mean())
    assert abs(np.mean(mean)) < 0.05


@pytest.mark.parametrize("cap", [None, "ace-nme"])
def test_parameters_are_those_of_the_system(cap):
    """Bonded terms and pair terms summed by hand equal OpenMM's energies of the same forces."""
    peptide = build_peptide("HPWI[HIP]", cap)
    p = peptide.parameters
    x = np.random.default_rng(0).normal(size=(len(peptide), 3)) * 2

    def angle(a, b, c):
        u, v = x[a] - x[b], x[c] - x[b]
        return np.arccos(np.sum(u * v, -1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1))

    def torsion(a, b, c, d):
        u, v, w = x[b] - x[a], x[c] - x[b], x[d] - x[c]
        m, n = np.cross(u, v), np.cross(v, w)
        return np.arctan2(np.sum(np.cross(m, n) * v, -1) / np.linalg.norm(v, axis=-1), np.sum(m * n, -1))

    length = np.linalg.norm(x[peptide.bonds[:, 0]] - x[peptide.bonds[:, 1]], axis=1)
    by_hand = {
        "HarmonicBondForce": np.sum(p.bond_k / 2 * (length - p.bond_length) ** 2),
        "HarmonicAngleForce": np.sum(p.angle_k / 2 * (angle(*p.angles.T) - p.angle_theta) ** 2),
        "PeriodicTorsionForce": np.sum(
            p.torsion_k * (1 + np.cos(p.torsion_n * torsion(*p.torsions.T) - p.torsion_phase))
        ),
    }
    from molgen.potentials.openmm import OpenMMPotential

    for name, energy in by_hand.items():
        system = copy.deepcopy(peptide.system)
        for i in reversed(range(system.getNumForces())):
            if type(system.getForce(i)).__name__ != name:
                system.removeForce(i)
        assert OpenMMPotential(system, platform="Reference").energy(x[None])[0] == pytest.approx(energy, rel=1e-9)
    nonbonded = next(f for f in peptide.system.getForces() if type(f).__name__ == "NonbondedForce")
    for i in range(len(peptide)):
        charge, sigma, epsilon = (value._value for value in nonbonded.getParticleParameters(i))
        expected = (charge, sigma * 10, epsilon * KJ_MOL)
        assert (p.charges[i], p.sigma[i], p.epsilon[i]) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    ("sequence", "cap", "charge"),
    [
        ("AA", None, 0), ("KR", None, 2), ("DE", "ace-nme", -2), ("H", "ace-nme", 0), ("[HID]A", None, 0),
        ("[HIP]A", None, 1),
    ],
)  # fmt: skip
def test_total_charge(sequence, cap, charge):
    assert build_peptide(sequence, cap).parameters.charges.sum() == pytest.approx(charge, abs=1e-9)


def test_types_follow_the_ends():
    peptide = build_peptide("AA")
    types = dict(zip(peptide.labels, peptide.parameters.types, strict=True))
    assert (types["0:ALA:N:N"], types["1:ALA:N:N"], types["1:ALA:OXT:O"]) == ("N3", "N", "O2")


def test_histidines_differ_in_their_hydrogens():
    def hydrogens(sequence):
        return {n for n in build_peptide(sequence, "ace-nme").names if n in ("HD1", "HE2")}

    assert hydrogens("H") == hydrogens("[HIE]") == {"HE2"}
    assert (hydrogens("[HID]"), hydrogens("[HIP]")) == ({"HD1"}, {"HD1", "HE2"})


def test_caps_count_as_residues():
    peptide = build_peptide("FV", "ace-nme")
    assert peptide.residue_names == ("ACE", "PHE", "VAL", "NME")
    assert peptide.residue_index.max() == 3 and peptide.names[0] == "CH3"


def test_twenty_residues_and_mdtraj():
    peptide = build_peptide(EVERY)
    topology = peptide.mdtraj_topology()
    assert topology.n_atoms == len(peptide) == 327 and topology.n_bonds == len(peptide.bonds)
    assert [atom.element.atomic_number for atom in topology.atoms] == peptide.numbers.tolist()
    assert "".join(residue.code for residue in topology.residues) == EVERY


def test_one_object_a_sequence_and_read_only():
    peptide = build_peptide("GY")
    assert build_peptide("GY") is build_peptide("GY", "none") is peptide
    assert build_peptide("[HIE]A") is build_peptide("HA") and build_peptide("[HIE]A").sequence == "HA"
    with pytest.raises(ValueError, match="read-only"):
        peptide.parameters.charges[0] = 1.0


def test_a_copy_and_a_worker_give_the_same_energies():
    peptide = build_peptide("AG")
    x = np.random.default_rng(1).normal(size=(3, len(peptide), 3)) * 2
    energies = peptide.potential("Reference").energy(x)
    np.testing.assert_array_equal(copy.deepcopy(peptide).potential("Reference").energy(x), energies)
    potential = peptide.potential("Reference", workers=2)
    assert isinstance(potential, ParallelPotential)
    with potential:
        np.testing.assert_array_equal(potential.energy(x), energies)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ABA",), "unknown residue 'B' at position 2\n  expected: one of ACDEFGHIKLMNPQRSTVWY"),
        (("[HIP]AX",), "unknown residue 'X' at position 3"),
        (("aA",), "unknown residue 'a' at position 1(.|\n)*remedy: write A"),
        (("A[HID",), r"unknown residue '\[' at position 2(.|\n)*close the bracket"),
        (("A[ASH]",), r"unknown residue '\[ASH\]' at position 2"),
        (("",), "the sequence is empty"),
        (("A",), "one residue with both termini charged(.|\n)*ace-nme"),
        (("AA", "amide"), "unknown cap 'amide'\n  expected: none .* or ace-nme"),
    ],
)
def test_bad_input(arguments, text):
    with pytest.raises(InputError, match=text):
        build_peptide(*arguments)
