"""Faults that a review found in `molgen ts`: charges that got lost, hands that were mixed, paths that jumped."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.units import Hartree
from ts_cases import sides

from molgen import find_ts
from molgen.cli.ts_report import beside
from molgen.data.sources import read_molecules
from molgen.errors import InputError
from molgen.geometry.chirality import signed_volumes, stereo_differences, tetrahedral_quadruples
from molgen.io import load_reaction
from molgen.potentials.base import SamplewisePotential
from molgen.potentials.xtb import XtbPotential
from molgen.saddle.descent import Flat, falling, off_saddle
from molgen.saddle.modes import normal_modes
from molgen.smiles import embed_molecule, same_handed
from molgen.structures import read_side
from molgen.workflows.ts_job import unit_doubt
from molgen.xyz import charge_of

SN2 = "[F-].CCl>>CF.[Cl-]"


@pytest.mark.parametrize(
    ("comment", "charge"),
    [
        ("charge=-2", -2), ("charge=-2.0", -2), ("Charge = +1", 1), ("charge: -1", -1), ("energy=1.0;charge=-1", -1),
        ('charge="-1"', -1), ("Properties=species:S:1:pos:R:3:initial_charges:R:1", None), ("discharge=3", None),
    ],
)  # fmt: skip
def test_charges_in_comments(comment: str, charge: int | None) -> None:
    assert charge_of(comment) == (charge, "")


def test_a_charge_that_is_none_is_said(tmp_path: Path) -> None:
    assert charge_of("charge=-0.83 by Mulliken") == (None, "charge=-0.83")
    ion = molecule("OH")
    ion.info["charge"] = -1.0
    write(tmp_path / "ion.xyz", ion)
    assert read_side(tmp_path / "ion.xyz", "reactant").charge == -1
    text = (tmp_path / "ion.xyz").read_text().replace("charge=-1.0", "charge=some")
    (tmp_path / "odd.xyz").write_text(text)
    side = read_side(tmp_path / "odd.xyz", "reactant")
    assert side.charge is None and "'charge=some' in its comment is no whole charge" in side.notes[-1]


def test_molecules_for_new_reactions_keep_the_charges_of_their_files(tmp_path: Path) -> None:
    ions = [molecule(name) for name in ("CH3O", "C2H6")]
    ions[0].info["charge"] = -1
    for frames, asked, charges in ((ions[:1], None, [-1]), (ions, None, [-1, 0]), (ions, 2, [-1, 2])):
        write(tmp_path / "ions.xyz", frames)
        assert [m.charge for m in read_molecules(tmp_path / "ions.xyz", charge=asked)] == charges


@pytest.mark.parametrize(
    "smiles",
    [
        "CC(O)C=COCC=C>>CC(O)C(C=O)CC=C",
        "C=COCC=CC(F)C>>C=CC(C(F)C)CC=O",
        "CC(C#N)N=C=O.O>>CC(C#N)NC(=O)O",
        "C[C@H](O)C=COCC=C>>CC(O)C(C=O)CC=C",
        "CC(O)C=COCC=C>>C[C@@H](O)C(C=O)CC=C",
    ],
)
def test_a_centre_left_open_has_one_hand_on_both_sides(smiles: str) -> None:
    reaction, _ = load_reaction(smiles=smiles)
    assert stereo_differences(reaction.numbers, reaction.reactant, reaction.product) == []


def test_hands_that_are_written_stay() -> None:
    reaction, _ = load_reaction(smiles="C[C@H](O)C=COCC=C>>C[C@@H](O)C(C=O)CC=C")
    kept, _ = load_reaction(smiles="C[C@H](O)C=COCC=C>>C[C@H](O)C(C=O)CC=C")
    found = [len(stereo_differences(r.numbers, r.reactant, r.product)) for r in (reaction, kept)]
    assert sorted(found) == [0, 1], "one of them inverts the centre, as it says"


def test_hands_that_do_not_go_together_leave_the_side_as_it_was() -> None:
    """A bicycle of three and three, whose bridgeheads cannot be *trans*."""
    side = embed_molecule("C1CC2CC12", "test")
    near = tetrahedral_quadruples(side.bonds)
    centres = np.concatenate([np.flatnonzero(side.bonds.sum(1) == 4)[:, None], near], axis=1)
    heads = [k for k, c in enumerate(centres) if (side.numbers[c[1:]] == 6).sum() == 3]
    now = np.sign(signed_volumes(side.conformers[0], near[heads]))
    for hands in (now, -now, now * [1, -1], now * [-1, 1]):
        other = same_handed(side, centres[heads], hands, "test")
        assert np.isfinite(other.conformers).all() and other.conformers.shape == side.conformers.shape
        if abs(hands @ now) == len(hands):
            assert (np.sign(signed_volumes(other.conformers, near[heads])) == hands).all()


def test_files_and_atoms_know_their_charge(tmp_path: Path) -> None:
    result = find_ts(smiles=SN2, out=tmp_path / "out")
    assert result.verified and result.best.atoms.info["charge"] == -1
    for name in ("reactant.xyz", "product.xyz", "ts.xyz", "path.xyz"):
        assert all(frame.info["charge"] == -1 for frame in read(tmp_path / "out" / name, ":")), name
    again, notes = load_reaction(tmp_path / "out" / "reactant.xyz", tmp_path / "out" / "product.xyz")
    assert again.charge == -1 and any("charge -1" in note for note in notes)
    step = result.best
    step.known = "reactant"
    assert step.intermediate is not None and step.intermediate.info == {"charge": -1}


def test_the_advice_keeps_the_arguments_of_the_calculator(tmp_path: Path) -> None:
    best, reaction = SimpleNamespace(known="product"), SimpleNamespace(charge=0, spin=0)
    result = SimpleNamespace(best=best, reaction=reaction, mechanism=None)
    told = beside(result, tmp_path, "tblite.ase:TBLite", None, {"method": "GFN1-xTB"})
    assert told.endswith("""--calculator tblite.ase:TBLite --calculator-kwargs '{"method": "GFN1-xTB"}')""")


def test_a_path_turns_no_somersaults(tmp_path: Path) -> None:
    """Hydrogen peroxide over the *cis* barrier: shape and saddle are far apart."""
    ends = [_peroxide(angle) for angle in (115.0, -115.0)]
    result = find_ts(*ends, samples=2, correction="none", out=tmp_path / "out")
    assert result.verified
    x = np.array([frame.positions for frame in read(tmp_path / "out" / "path.xyz", ":")])
    assert np.linalg.norm(np.diff(x, axis=0), axis=-1).max() < 0.4, "Angstrom an atom"


def _peroxide(dihedral: float) -> Atoms:
    atoms = molecule("H2O2")
    oxygens, hydrogens = (np.flatnonzero(atoms.numbers == z) for z in (8, 1))
    distances = atoms.get_all_distances()
    first = hydrogens[distances[oxygens[0], hydrogens].argmin()]
    second = next(h for h in hydrogens if h != first)
    atoms.set_dihedral(first, oxygens[0], oxygens[1], second, dihedral, indices=[second])
    return atoms


def test_a_descent_has_no_spikes() -> None:
    x = np.zeros((1, 3))
    path = [(1.0, x), (0.5, x), (0.9, x), (0.4, x), (0.4, x), (0.45, x)]
    assert [energy for energy, _ in falling(path)] == [1.0, 0.5, 0.4, 0.4]


class Plateau(SamplewisePotential):
    """Two atoms: along their distance r a weak maximum at 2 that turns up again; `rise` says how soon."""

    def __init__(self, rise: float):
        super().__init__([1, 1])
        self.rise = rise

    def _evaluate_one(self, positions, forces):
        apart = positions[1] - positions[0]
        r = np.linalg.norm(apart)
        d = r - 2.0
        slope = -0.2 * d + 4 * self.rise * d**3
        return -0.1 * d**2 + self.rise * d**4, np.stack([slope * apart / r, -slope * apart / r])


def test_beside_a_soft_saddle_the_energy_has_to_fall() -> None:
    x = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    for rise, fraction in ((0.1, 1.0), (2.0, 0.5), (30.0, 0.125)):
        potential = Plateau(rise)
        modes = normal_modes(potential, x, central=True)
        start = off_saddle(potential, x, modes, 1)
        assert np.linalg.norm(start - x) == pytest.approx(0.3 * fraction, rel=1e-6)
        assert potential.energy(start[None])[0] < modes.energy
    with pytest.raises(Flat):
        off_saddle(Plateau(5000.0), x, modes, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": torch.float16}, "float16 given"),
        ({"dtype": torch.int32}, "int32 given"),
        ({"out": 3}, "--out: 3 given"),
        ({"weights": None}, "--weights: None given"),
        ({"correction": 3}, "--correction: 3 given"),
    ],
)
def test_arguments_that_are_none(options: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_ts(*sides("hcn"), **options)


def test_no_correction_by_none_and_no_order_in_smiles() -> None:
    assert find_ts(*sides("hcn"), samples=1, correction=None).corrected is None
    with pytest.raises(InputError, match="--no-map: SMILES have no order"):
        find_ts(smiles="C=CO>>CC=O", map_atoms=False)


class InHartree(XtbPotential):
    """GFN2-xTB whose energies and forces are in Hartree and Hartree/Angstrom."""

    def _evaluate_one(self, positions, forces):
        energy, force = super()._evaluate_one(positions, forces)
        return energy / Hartree, None if force is None else force / Hartree


def test_energies_in_hartree_are_suspected() -> None:
    """The search itself looks as ever, its barrier 27 times too low."""
    numbers = load_reaction(*sides("cl_ch3cl"), charge=-1)[0].numbers
    for potential, suspected in ((InHartree(numbers, -1), True), (XtbPotential(numbers, -1), False)):
        said: list[str] = []
        found = find_ts(*sides("cl_ch3cl"), charge=-1, samples=1, calculator=potential, log=said.append)
        assert found.best.verdict == "intended"
        doubts = [note for note in found.notes if "not in Hartree?" in note]
        assert len(doubts) == suspected and set(doubts) <= set(said)


def test_no_unit_is_suspected_where_no_bond_to_hydrogen_is_kept() -> None:
    """HCN -> HNC: the only hydrogen is what reacts. Nor without modes."""
    hcn = InHartree(load_reaction(*sides("hcn"))[0].numbers)
    assert not any("Hartree" in note for note in find_ts(*sides("hcn"), samples=1, calculator=hcn).notes)
    assert unit_doubt(find_ts(*sides("claisen"), samples=1, refine=False)) == ""


def test_the_summary_knows_the_level(tmp_path: Path) -> None:
    find_ts(*sides("hcn"), samples=1, calculator="gfn1", out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["level"] == "GFN1-xTB"
