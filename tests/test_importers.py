"""Importers against tiny files written in the published schemas."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import write

from molgen.data import load_npz, save_npz
from molgen.data.exclusion import excluded_keys
from molgen.data.importers import import_reactions
from molgen.data.sources import all_molecules
from molgen.errors import InputError
from molgen.geometry.mapping import given_mapping
from molgen.tsgen.correction import load_training_points
from molgen.tsgen.training import load_training_data
from molgen.workflows.relevel import level_plan
from molgen.workflows.searches import search_plan


def _elimination():
    """Ethane -> ethene + H2 in one atom order: numbers, reactant, ts, product of two far fragments."""
    ethane = molecule("C2H6")
    numbers, reactant = ethane.numbers, ethane.positions
    carbons = np.flatnonzero(numbers == 6)
    ethene, h2 = molecule("C2H4"), molecule("H2")
    on = [[k for k in range(8) if numbers[k] == 1 and ethane.get_distance(k, c) < 1.2] for c in carbons]
    product = np.empty((8, 3))
    product[carbons] = ethene.positions[:2]
    sides = [np.flatnonzero(np.linalg.norm(ethene.positions - ethene.positions[c], axis=1) < 1.2)[-2:] for c in (0, 1)]
    product[on[0][:2]], product[on[1][:2]] = ethene.positions[sides[0]], ethene.positions[sides[1]]
    product[[on[0][2], on[1][2]]] = h2.positions + [15.0, 0, 0]
    return numbers, reactant, 0.5 * (reactant + product), product


def _rdb7(folder, split_product=False, order=None):
    numbers, r, ts, p = _elimination()
    inside = folder / "wb97xd3_xyz" / "rxn000042"
    inside.mkdir(parents=True)
    (folder / "wb97xd3.csv").write_text("idx,rsmi,psmi,ea,dh\n42,CC,C=C.[H][H],110.0,30.0\n")
    write(inside / "r000042.xyz", Atoms(numbers, r))
    write(inside / "ts000042.xyz", Atoms(numbers, ts))
    far = p[:, 0] > 10
    if split_product:
        write(inside / "p000042_0.xyz", Atoms(numbers[~far], p[~far]))
        write(inside / "p000042_1.xyz", Atoms(numbers[far], p[far] - [15.0, 0, 0]))
    else:
        order = np.arange(8) if order is None else order
        write(inside / "p000042.xyz", Atoms(numbers[order], p[order]))
    return folder


def test_rdb7_folder(tmp_path):
    (reaction,) = import_reactions(_rdb7(tmp_path))
    numbers, r, ts, p = _elimination()
    assert reaction.name == "42"
    assert np.array_equal(reaction.numbers, numbers)
    np.testing.assert_allclose(reaction.reactant, r, atol=1e-7)
    assert reaction.ts is not None
    np.testing.assert_allclose(reaction.ts, ts, atol=1e-7)
    np.testing.assert_allclose(reaction.product - reaction.product.mean(0), p - p.mean(0), atol=1e-7)
    assert sorted(np.bincount(reaction.product_fragments)) == [2, 6]
    assert reaction.reactant_fragments.max() == 0


def test_rdb7_with_a_file_for_each_product_is_mapped(tmp_path):
    (reaction,) = import_reactions(_rdb7(tmp_path, split_product=True))
    mapping = given_mapping(reaction.numbers, reaction.reactant, reaction.numbers, reaction.product)
    assert mapping is not None
    assert (len(mapping.bonds_broken), len(mapping.bonds_formed)) == (2, 1)
    leaving = np.flatnonzero(np.bincount(reaction.product_fragments)[reaction.product_fragments] == 2)
    assert reaction.numbers[leaving].tolist() == [1, 1]


def test_rdb7_product_in_another_order_is_mapped(tmp_path):
    (reaction,) = import_reactions(_rdb7(tmp_path, order=np.array([7, 3, 1, 0, 6, 2, 5, 4])))
    mapping = given_mapping(reaction.numbers, reaction.reactant, reaction.numbers, reaction.product)
    assert mapping is not None
    assert mapping.bond_changes == 3


def _transition1x(path, drop=None):
    numbers, r, ts, p = _elimination()
    with h5py.File(path, "w") as file:
        for name in ("rxn0001", "rxn0002"):
            group = file.create_group(f"data/C2H6/{name}")
            group["atomic_numbers"] = numbers
            group["positions"] = np.stack([r, ts, p])  # every image of the path, with energies and forces
            group["wB97x_6-31G(d).energy"] = np.zeros(3)
            group["wB97x_6-31G(d).forces"] = np.zeros((3, 8, 3))
            for side, x in (("reactant", r), ("transition_state", ts), ("product", p)):
                if side != drop:
                    inner = group.create_group(side)
                    inner["positions"] = x[None]
                    inner["atomic_numbers"] = numbers
                    inner["hash"] = "C2H6abc"
                    inner["wB97x_6-31G(d).energy"] = np.zeros(1)
                    inner["wB97x_6-31G(d).forces"] = np.zeros((1, 8, 3))
        file["train/C2H6/rxn0001"] = h5py.SoftLink("/data/C2H6/rxn0001")
    return path


def test_transition1x(tmp_path):
    first, second = import_reactions(_transition1x(tmp_path / "t1x.h5"))
    assert (first.name, second.name) == ("C2H6/rxn0001", "C2H6/rxn0002")
    numbers, r, ts, p = _elimination()
    assert np.array_equal(first.numbers, numbers)
    for mine, true in ((first.reactant, r), (first.ts, ts), (first.product, p)):
        np.testing.assert_array_equal(mine, true)
    assert sorted(np.bincount(first.product_fragments)) == [2, 6]


def _rgd1(path, name="MR_100001_2", **changes):
    numbers, r, ts, p = _elimination()
    content = {"elements": numbers.astype(np.uint8), "RG": r, "TSG": ts, "PG": p, "R_E": 0.0, "Rsmiles": "CC"} | changes
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is not None:
                file[f"{name}/{key}"] = value
    return path


def test_rgd1(tmp_path):
    (reaction,) = import_reactions(_rgd1(tmp_path / "rgd1.h5"))
    assert reaction.name == "MR_100001_2"
    assert reaction.numbers.dtype == np.int64
    np.testing.assert_array_equal(reaction.ts, _elimination()[2])
    assert reaction.product_fragments.max() == 1
    save_npz(tmp_path / "set.npz", [reaction], "train")  # what an import is for


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda d: d / "none", "auto", "no such file or folder"),
        (lambda d: d, "auto", "no rxn000000 folders"),
        (lambda d: d, "rdb8", "unknown kind 'rdb8'\n  expected: auto, rdb7, transition1x, rgd1"),
        (
            lambda d: _transition1x(d / "x.h5", drop="product"),
            "auto",
            "x.h5, data/C2H6/rxn0001: no 'product/positions'",
        ),
        (lambda d: _rgd1(d / "x.h5", TSG=None), "rgd1", "x.h5, MR_100001_2: no 'TSG'"),
        (lambda d: _rgd1(d / "x.h5", TSG=None), "auto", "neither Transition1x nor RGD1"),
        (lambda d: _rgd1(d / "x.h5", PG=np.zeros((7, 3))), "auto", r"product of shape \(7, 3\)"),
        (lambda d: _rgd1(d / "x.h5", RG=np.full((8, 3), np.nan)), "auto", "reactant of shape .* non-finite"),
        (lambda d: _rgd1(d / "x.h5"), "transition1x", "no group 'data'"),
    ],
)
def test_faults_are_named(tmp_path, make, kind, text):
    with pytest.raises(InputError, match=text):
        list(import_reactions(make(tmp_path), kind))


def test_commands_that_need_an_npz_say_how_to_make_one(tmp_path):
    folder, file = _rdb7(tmp_path / "rdb7"), _rgd1(tmp_path / "rgd1.h5")
    readers = (load_npz, lambda path: all_molecules([path]), lambda path: level_plan([path]), search_plan)
    for path, text in ((folder, "rdb7: is a folder"), (file, "rgd1.h5: is an HDF5 file")):
        for reader in (*readers, lambda path: excluded_keys([path])):
            with pytest.raises(InputError, match=text) as caught:
                reader(path)
        made = tmp_path / f"{path.stem}.npz"
        assert caught.value.remedy is not None
        lines = caught.value.remedy.partition(": ")[2].replace("set.npz", str(made))
        subprocess.run([sys.executable, "-c", lines], check=True)
        (reaction,) = load_npz(made, "train")
        assert reaction.ts is not None and len(all_molecules([made])) == 2


def test_a_published_set_has_no_splits(tmp_path):
    with pytest.raises(InputError, match="--train-split: train and test given for a published set"):
        load_training_data(tmp_path, val_split="test")


def test_not_hdf5(tmp_path):
    (tmp_path / "x.h5").write_text("not HDF5")
    with pytest.raises(InputError, match=r"x.h5: not a readable HDF5 file(?s:.*)expected: reactions: .npz"):
        list(import_reactions(tmp_path / "x.h5"))


def test_rdb7_without_a_transition_state_or_with_other_atoms(tmp_path):
    inside = _rdb7(tmp_path) / "wb97xd3_xyz" / "rxn000042"
    write(inside / "ts000042.xyz", molecule("C2H4"))
    with pytest.raises(InputError, match="different atoms"):
        list(import_reactions(tmp_path))
    (inside / "ts000042.xyz").unlink()
    with pytest.raises(InputError, match="no ts000042.xyz"):
        list(import_reactions(tmp_path))


def test_the_folder_of_a_run_is_sent_to_the_set_in_it(tmp_path):
    _rgd1(tmp_path / "rgd1.h5")
    run = tmp_path / "rx"
    run.mkdir()
    save_npz(run / "reactions.npz", list(import_reactions(tmp_path / "rgd1.h5")), "train")
    readers = (load_npz, import_reactions, lambda path: all_molecules([path]), lambda path: level_plan([path]))
    for reader in (*readers, search_plan, load_training_data, lambda path: excluded_keys([path])):
        with pytest.raises(InputError, match=f"rx: is the folder of a run(?s:.*)give {run / 'reactions.npz'}$"):
            reader(run)
    (tmp_path / "se").mkdir()
    (tmp_path / "se" / "searches.npz").write_text("")
    with pytest.raises(InputError, match=f"give {tmp_path / 'se' / 'searches.npz'}$"):
        load_training_points(run / "reactions.npz", tmp_path / "se", "train")
