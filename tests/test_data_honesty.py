"""Faults that a review found in data, runs and saved ensembles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import pytest
from test_importers import _rdb7
from test_tsmodel import built_in
from ts_cases import sides

from molgen import Ensemble, find_ts, sample_peptide
from molgen.data.duplicates import among
from molgen.data.importers import import_reactions
from molgen.data.md import MDSet, load_md, save_md
from molgen.data.peptide import build_peptide
from molgen.data.reactions import Reaction, save_npz
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph
from molgen.rng import generator
from molgen.run import Run
from molgen.tsgen.training import load_training_data


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    return [r for r in built_in() if r.ts is not None]


def test_rdb7_products_in_files_of_their_own_are_mapped_from_the_transition_state(tmp_path: Path) -> None:
    """Which hydrogens leave ethane only the transition state tells."""
    (whole,) = import_reactions(_rdb7(tmp_path / "one"))
    (split,) = import_reactions(_rdb7(tmp_path / "two", split_product=True))
    graphs = [bond_graph(r.numbers, r.product) for r in (whole, split)]
    np.testing.assert_array_equal(*graphs)


def test_a_reaction_is_known_however_it_lies_runs_and_is_rounded(reactions: list[Reaction]) -> None:
    first, second = reactions[:2]
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    moved = replace(first.reversed, ts=np.float32(np.asarray(first.ts) @ turn + 7.0), product=first.product + 3.0)
    assert among([moved, second], [first]).tolist() == [True, False]
    other = replace(first, ts=np.asarray(first.ts) + np.eye(len(first), 3) * 0.05)
    assert among([other], [first]).tolist() == [False] and among([], [first]).tolist() == []


def test_validation_reactions_do_not_leak_by_their_fragments(reactions: list[Reaction], tmp_path: Path) -> None:
    apart = next(r for r in reactions if r.product_fragments.max())
    elsewhere = replace(apart, product=apart.product + 9.0 * apart.product_fragments[:, None])
    others = [r for r in reactions if r is not apart][:3]
    path = tmp_path / "set.npz"
    save_npz(path, [*others, elsewhere, apart], ["train"] * (len(others) + 1) + ["val"])
    said: list[str] = []
    train, val = load_training_data(path, warn=said.append)
    assert len(train) == len(others) and len(val) == 1
    assert "1 training reaction left out, as validation has the same" in said[0]


def test_a_run_does_not_remove_what_it_reads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Run(out, "peptide", {}) as run:
        run.path("adapter").mkdir()
        (out / "adapter" / "weights.safetensors").write_text("hours of work")
        run.write_text("samples.txt", "1")
    for reads in ([out / "adapter"], [str(out / "adapter" / "weights.safetensors")], ["tsgen", out / "samples.txt"]):
        with pytest.raises(InputError, match=r"lies in it(?s:.*)choose another --out"):
            Run(out, "peptide", {}, overwrite=True, reads=reads)
    with pytest.raises(InputError, match="lies in it"):
        Run(out, "peptide", {"data": [str(out / "samples.txt")]}, overwrite=True)
    assert (out / "adapter" / "weights.safetensors").exists()
    settings = {"folder": str(tmp_path), "weights": "prose"}
    Run(out, "peptide", settings, overwrite=True, reads=[None, tmp_path, 3]).path("samples.txt")
    assert not (out / "adapter").exists()


def test_molgen_ts_does_not_remove_the_files_it_is_given(tmp_path: Path) -> None:
    options: dict[str, Any] = {"samples": 1, "refine": False, "out": tmp_path / "out"}
    find_ts(*sides("hcn"), **options)
    files = [[str(tmp_path / "out" / f"{name}.xyz")] for name in ("reactant", "product")]
    with pytest.raises(InputError, match="lies in it"):
        find_ts(*files, **options, overwrite=True)
    assert (tmp_path / "out" / "reactant.xyz").exists()


def test_a_first_proline_keeps_its_bonds_in_files(tmp_path: Path) -> None:
    ensemble = sample_peptide("PG", n=4, seed=1, out=tmp_path / "pg")
    assert ensemble.topology is not None
    bonds = {tuple(sorted((a.index, b.index))) for a, b in ensemble.topology.bonds}
    for topology in (Ensemble.load(tmp_path / "pg").topology, mdtraj.load(str(tmp_path / "pg/topology.pdb")).topology):
        assert topology is not None
        assert {tuple(sorted((a.index, b.index))) for a, b in topology.bonds} == bonds
        assert len(topology.find_molecules()) == 1


@pytest.fixture
def dynamics() -> MDSet:
    """Two frames at one temperature."""
    peptide = build_peptide("GG")
    x = np.zeros((1, 2, len(peptide.labels), 3), dtype=np.float32) + np.arange(len(peptide.labels))[:, None]
    return MDSet("GG", None, np.array([310.0]), x, np.zeros((1, 2)), peptide.labels, peptide.bonds, 1.0, "")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("temperatures", np.array([-310.0]), "temperatures .-310.0.(?s:.*)each above 0"),
        ("temperatures", np.array([np.nan]), "temperatures .nan."),
        ("temperatures", np.array(["warm"]), "temperatures .'warm'."),
        ("x", "int32", "x has type int32"),
        ("x", "str", "x has type"),
        ("e", np.float64(1.0), "e has type float64 and shape"),
        ("bonds", np.arange(4), "bonds has type"),
        ("acc", np.zeros(3), "acc has type"),
    ],
)
def test_dynamics_that_are_none_are_refused(dynamics: MDSet, tmp_path: Path, name: str, value, text: str) -> None:
    path = save_md(tmp_path / "GG.npz", dynamics)
    assert load_md(path).sequence == "GG"
    arrays = dict(np.load(path))
    arrays[name] = arrays[name].astype(value) if isinstance(value, str) else value
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=text):
        load_md(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", np.array("warm")),
        ("temperature", np.array([1.0, 2.0])),
        ("energies", np.array(["a", "b", "c"])),
        ("redrawn_by", np.zeros(3)),
        ("at_best", np.array("great")),
        ("validity_counts", np.array([1.0, 2.0])),
    ],
)
def test_damaged_weights_are_said_to_be(tmp_path: Path, name: str, value: np.ndarray) -> None:
    Ensemble(np.zeros((3, 2, 3)), np.zeros(3), np.zeros(3), 300.0, [1, 1]).save(tmp_path)
    arrays = dict(np.load(tmp_path / "weights.npz"))
    np.savez(tmp_path / "weights.npz", **(arrays | {name: value}))
    with pytest.raises(InputError, match="damaged|weights"):
        Ensemble.load(tmp_path)


def test_what_is_no_ensemble_and_no_folder() -> None:
    some = Ensemble(np.zeros((3, 2, 3)), np.zeros(3), np.zeros(3), 300.0, [1, 1])
    with pytest.raises(InputError, match="ensemble 1: 2 given"):
        Ensemble.merge([some, 2])  # type: ignore[list-item]
    with pytest.raises(InputError, match="None given"):
        some.save(None)  # type: ignore[arg-type]


def test_an_ensemble_does_not_replace_the_samples_of_a_run(tmp_path: Path) -> None:
    """Its summary and pictures would stay, and a resumed run would report averages of other samples under them."""
    some = Ensemble(np.zeros((3, 2, 3)), np.zeros(3), np.zeros(3), 300.0, [1, 1])
    with Run(tmp_path / "run", "peptide", {}) as run:
        some.save(run)
    with pytest.raises(InputError, match=r"run: is the folder of a run(?s:.*)remedy: name another one"):
        some.save(tmp_path / "run")
    some.save(tmp_path / "other")


@pytest.mark.parametrize("use", [generator, lambda seed: Run("unused", "peptide", {}, seed=seed)])
def test_no_seed_is_no_number(use) -> None:
    with pytest.raises(InputError, match=r"--seed: None given(?s:.*)a whole number"):
        use(None)


def test_an_ensemble_without_topology_is_saved_over_one_that_has_it(tmp_path: Path) -> None:
    """Of as many atoms, and of others; files of an earlier version, which do not say what is theirs, load as ever."""
    import mdtraj

    topology = mdtraj.Topology()
    residue = topology.add_residue("H2", topology.add_chain())
    for name in ("H1", "H2"):
        topology.add_atom(name, mdtraj.element.hydrogen, residue)
    known = Ensemble(np.ones((3, 2, 3)), np.zeros(3), np.zeros(3), 300.0, [1, 1], topology)
    for atoms in (2, 5):
        known.save(tmp_path, positions=True)
        assert Ensemble.load(tmp_path).topology is not None
        bare = Ensemble(np.zeros((4, atoms, 3)), np.zeros(4), np.zeros(4), 300.0, [1] * atoms)
        bare.save(tmp_path)
        again = Ensemble.load(tmp_path)
        assert again.topology is None and np.array_equal(again.positions, bare.positions)
    for positions in (True, False):
        known.save(tmp_path, positions=positions)
        arrays = dict(np.load(tmp_path / "weights.npz"))
        del arrays["has_topology"]
        np.savez(tmp_path / "weights.npz", **arrays)
        assert Ensemble.load(tmp_path).topology is not None
