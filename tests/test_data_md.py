"""MD files, held-out lists, start structures and replica exchange: against exact answers, and resumed to the bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from scipy import stats

from molgen.data.md import heldout, is_held_out, load_md, read_sequences, save_md
from molgen.data.peptide import build_peptide
from molgen.data.remd import ReplicaExchange, exchange, generate_md
from molgen.data.start import start_structure
from molgen.data.stereochemistry import before_proline, cis_bonds, peptide_bonds, wrong_chirality
from molgen.errors import InputError
from molgen.geometry.internal import dihedral
from molgen.units import KB, KJ_MOL
from molgen.workflows.md import _Simulation

mm = pytest.importorskip("openmm")
QUICK = {"temperatures": (310.0, 600.0), "hot": 2, "settle": 1}


@pytest.fixture(scope="module")
def dialanine(tmp_path_factory):
    """A short run: (path, figures)."""
    path = tmp_path_factory.mktemp("md") / "AA.npz"
    return path, generate_md("AA", path, 4, seed=7, **QUICK)


def test_a_file_of_the_set(shared, tmp_path):
    path = shared / "data" / "peptides_md" / "ATH.npz"
    md = load_md(path)
    assert (md.sequence, md.cap, md.acceptance) == ("ATH", None, 0.24)
    assert md.positions.shape == (4, 200, 44, 3) and md.positions.dtype == np.float32
    with np.load(path) as data:
        assert md.energies[0, 0] == pytest.approx(data["e"][0, 0] * KJ_MOL)
        again = save_md(tmp_path / "x.npz", md)
        with np.load(again) as mine:
            assert all(np.array_equal(mine[key], data[key]) for key in ("x", "e", "names"))


def test_what_is_generated(dialanine):
    path, figures = dialanine
    md = load_md(path)
    assert md.temperatures.tolist() == [310, 600] and md.positions.shape == (2, 4, 23, 3)
    assert figures["wrong_handedness"] == 0 and figures["frames"] == 4 and figures["atoms"] == 23
    error = md.peptide.potential("Reference").energy(md.positions.reshape(-1, 23, 3)) - md.energies.ravel()
    assert np.abs(error).max() < 0.8 * KJ_MOL  # rounding of positions; another frame's energy is 10 off and more
    np.testing.assert_allclose(md.positions.mean(axis=2), 0, atol=1e-3)


def test_frames_as_a_trajectory(dialanine):
    md = load_md(dialanine[0])
    found = md.trajectory(600)
    np.testing.assert_allclose(found.xyz * 10, md.positions[1], atol=1e-5)
    assert [atom.name for atom in found.topology.atoms] == list(md.peptide.names)
    with pytest.raises(InputError, match="no frames at 350 K(.|\n)*310, 600 K"):
        md.trajectory(350)


def test_molecules_beyond_int16_are_kept_in_float(dialanine, tmp_path):
    md = load_md(dialanine[0])
    md.positions[0, 0, 0, 0] = 40.125
    assert load_md(save_md(tmp_path / "x.npz", md)).positions[0, 0, 0, 0] == np.float32(40.125)


@pytest.mark.parametrize("sequence", ["A[HIP]", "[HID][HIE]"])
def test_protonation_is_read_from_the_hydrogens(dialanine, tmp_path, sequence):
    peptide = build_peptide(sequence, "ace-nme")
    md = load_md(dialanine[0])
    values = {**vars(md), "positions": np.zeros((2, 4, len(peptide), 3)), "names": peptide.labels}
    back = load_md(save_md(tmp_path / "x.npz", type(md)(**values | {"bonds": peptide.bonds})))
    assert (back.sequence, back.cap) == (sequence.replace("[HIE]", "H"), "ace-nme")


@pytest.mark.parametrize("key", ["x", "e", "names", "bonds", "temperatures", "nan", "text", "none"])
def test_damaged_files(dialanine, tmp_path, key):
    path = tmp_path / "x.npz"
    with np.load(dialanine[0]) as data:
        arrays = dict(data)
    texts = {
        "x": "x has shape", "e": "missing keys: e", "names": "not those of AA", "bonds": "bonds are not those",
        "temperatures": "with 0 temperatures", "nan": "non-finite", "text": "not an npz file",
        "none": "no such file",
    }  # fmt: skip
    if key == "x":
        arrays["x"] = arrays["x"][:, 1:]
    elif key == "names":
        arrays["names"] = np.roll(arrays["names"], 1)
    elif key == "bonds":
        arrays["bonds"] = arrays["bonds"][1:]
    elif key == "nan":
        arrays["e"][0, 0] = np.nan
    else:
        arrays.pop(key, None)
    if key == "text":
        path.write_text("no npz")
    elif key != "none":
        np.savez(path, **arrays)
    with pytest.raises(InputError, match=texts[key]):
        load_md(path)


def test_held_out_list(shared):
    path = shared / "data" / "peptides_md" / "HELDOUT.txt"
    held, marked = heldout(path), heldout(path, benchmark=True)
    assert len(held) == 72 and len(marked) == 24 and marked < held
    assert {"AW", "PP", "YRIH"} <= held and "AW" not in marked and "PP" in marked
    for file in path.parent.glob("*.npz"):
        assert not is_held_out(file.stem, held)


@pytest.mark.parametrize(
    ("sequence", "refused"),
    [("PP", True), ("APPA", False), ("HCQ", True), ("[HIP]CQ", True), ("AHCQG", True), ("HCAQ", False), ("AA", False)],
)
def test_held_out_filter(sequence, refused):
    assert is_held_out(sequence, {"PP", "HCQ"}) is refused


def test_list_of_sequences(tmp_path):
    path = tmp_path / "list.txt"
    for encoding in ("utf-8", "utf-8-sig"):  # the mark that Windows editors put first
        path.write_text("GY\nAA *\n\nGY  # again\n[HID]A\n# some\n", encoding=encoding)
        assert read_sequences(path) == ("GY", "AA", "[HID]A")
    path.write_text("AA\nABC\n")
    with pytest.raises(InputError, match="list.txt, line 2: 'ABC' is no sequence"):
        read_sequences(path)
    with pytest.raises(InputError, match="No such file"):
        read_sequences(tmp_path / "none")


@pytest.mark.parametrize(("sequence", "cap"), [("ITVK", None), ("RHP", None), ("[HID][HIP]D", "ace-nme")])
def test_start_structures_are_l_and_trans(sequence, cap):
    peptide = build_peptide(sequence, cap)
    x = start_structure(peptide, 1)
    assert not wrong_chirality(peptide, x) and wrong_chirality(peptide, -x)
    omega = dihedral(*torch.from_numpy(x[peptide_bonds(peptide)]).unbind(1))
    assert (omega.abs() > np.radians(140)).all()
    assert np.isfinite(x).all() and np.array_equal(x, start_structure(peptide, 1))
    lengths = np.linalg.norm(x[peptide.bonds[:, 0]] - x[peptide.bonds[:, 1]], axis=1)
    np.testing.assert_allclose(lengths, peptide.parameters.bond_length, atol=0.06)


def test_start_structures_are_cis_before_proline_alone():
    peptide = build_peptide("GPAP")
    x = start_structure(peptide, 1, before_proline(peptide))
    assert cis_bonds(peptide, x).tolist() == [True, False, True] == before_proline(peptide).tolist()
    assert not wrong_chirality(peptide, x)


def test_both_forms_of_proline_are_sampled(tmp_path):
    """Replicas start in turn trans and cis, and exchange."""
    generate_md("GP", tmp_path / "GP.npz", 2, temperatures=(310.0, 380.0), hot=1, settle=0)
    md = load_md(tmp_path / "GP.npz")
    assert (cis_bonds(md.peptide, md.positions)[..., 0].sum(0) == 1).all()


def test_equivalent_groups_have_one_name_in_all_frames(tmp_path):
    """Which methyl group of a valine is CG1: by chance in every start, and in frames that replicas exchange."""
    options = {"frames": 3, "cap": None, "temperatures": (310.0, 380.0, 470.0, 600.0), "hot": 1, "settle": 0}
    _Simulation(tmp_path, {**options, "seed": 0, "platform": "Reference"}, None)("VA", lambda ps: None)
    data = load_md(tmp_path / "VA.npz")
    at = [[name.split(":")[2] for name in data.names].index(name) for name in ("CA", "HB", "CG1", "CG2")]
    x = data.positions.astype(float)[:, :, at]
    assert len(np.unique(np.sign(np.linalg.det(x[..., 1:, :] - x[..., :1, :])))) == 1


def test_handedness_is_that_of_rdkit():
    """CIP labels of RDKit from the coordinates: L is S (R for CYS), isoleucine (2S,3S), threonine (2S,3R)."""
    from rdkit import Chem

    peptide = build_peptide("ICTA")
    x = start_structure(peptide, 2)
    molecule = Chem.RWMol()
    for number in peptide.numbers.tolist():
        molecule.AddAtom(Chem.Atom(number))
    for (i, j), length in zip(peptide.bonds.tolist(), peptide.parameters.bond_length, strict=True):
        double = {peptide.names[i], peptide.names[j]} == {"C", "O"} and length < 1.3
        molecule.AddBond(i, j, Chem.BondType.DOUBLE if double else Chem.BondType.SINGLE)
    molecule.GetAtomWithIdx(0).SetFormalCharge(1)
    molecule.GetAtomWithIdx(len(peptide) - 1).SetNoImplicit(True)
    molecule.UpdatePropertyCache(strict=False)
    conformer = Chem.Conformer(len(peptide))
    conformer.SetPositions(x)
    molecule.AddConformer(conformer)
    Chem.AssignStereochemistryFrom3D(molecule)
    found = {
        (int(peptide.residue_index[a.GetIdx()]), peptide.names[a.GetIdx()]): a.GetProp("_CIPCode")
        for a in molecule.GetAtoms()
        if a.HasProp("_CIPCode")
    }
    assert {k: v for k, v in found.items() if k[1] in ("CA", "CB")} == {
        (0, "CA"): "S", (0, "CB"): "S", (1, "CA"): "R", (2, "CA"): "S", (2, "CB"): "R", (3, "CA"): "S",
    }  # fmt: skip


def test_exchange_accepts_as_it_must_and_leaves_the_ensembles_alone():
    """Harmonic oscillators: energies are Gamma(d/2, kT); acceptance by quadrature."""
    rng, degrees, n = np.random.default_rng(0), 6, 20_000
    kt = KB * np.array([300.0, 450.0])
    energies = rng.gamma(degrees / 2, kt, size=(n, 2))
    after, accepted = np.empty_like(energies), 0
    for k in range(n):
        order, count = exchange(energies[k], kt / KB, 0, rng.random(2))
        after[k] = energies[k][order]
        accepted += count
    grid = np.linspace(0, 40 * kt[1], 2001)
    weight = [stats.gamma.pdf(grid, degrees / 2, scale=scale) for scale in kt]
    chance = np.exp(np.minimum(0, (1 / kt[0] - 1 / kt[1]) * (grid[:, None] - grid)))
    exact = np.einsum("i,j,ij->", weight[0], weight[1], chance) * (grid[1] - grid[0]) ** 2
    assert accepted / n == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / n))
    for k in range(2):
        assert stats.kstest(after[:, k], stats.gamma(degrees / 2, scale=kt[k]).cdf).pvalue > 1e-3


def test_pairs_alternate():
    order, accepted = exchange(np.zeros(5), np.arange(1.0, 6), 0, np.zeros(5))
    assert order.tolist() == [1, 0, 3, 2, 4] and accepted == 2
    order, accepted = exchange(np.zeros(5), np.arange(1.0, 6), 3, np.zeros(5))
    assert order.tolist() == [0, 2, 1, 4, 3] and accepted == 2


def _springs(particles: int, k: float):
    system, force = mm.System(), mm.CustomExternalForce(f"{k / 2}*(x^2+y^2+z^2)")
    for i in range(particles):
        system.addParticle(1.0)
        force.addParticle(i)
    system.addForce(force)
    return system


def test_replicas_are_canonical():
    """Oscillators: <U> = 3/2 N kT at every temperature, with exchanges going on."""
    particles, temperatures = 8, np.array([300.0, 360.0, 430.0])
    replicas = ReplicaExchange(
        _springs(particles, 100.0), np.zeros((3, particles, 3)), temperatures, seed=4, hot=5, settle=10, steps=100,
        step_ps=0.01,
    )  # fmt: skip
    energies = np.array([replicas.advance()[1] for _ in range(600)])[15:]
    assert 0.2 < replicas.accepted / replicas.attempted < 0.9
    expected = 1.5 * particles * KB * temperatures
    # relative spread sqrt(2 / 3N) a frame; energies forget in about one frame of 1 ps
    error = expected * np.sqrt(2 / (3 * particles)) / np.sqrt(len(energies) / 3)
    assert (np.abs(energies.mean(0) - expected) < 4 * error).all(), energies.mean(0) / expected


def test_velocities_follow_the_temperature():
    temperatures = np.array([300.0, 600.0])
    replicas = ReplicaExchange(_springs(5, 0.0), np.zeros((2, 5, 3)), temperatures, hot=0, settle=0, steps=0)
    before = [c.getState(getVelocities=True).getVelocities(asNumpy=True)._value for c in replicas.contexts]
    replicas.advance()  # energies are zero, so the two exchange
    after = [c.getState(getVelocities=True).getVelocities(asNumpy=True)._value for c in replicas.contexts]
    np.testing.assert_allclose(after[0], before[1] * np.sqrt(0.5), rtol=1e-6)
    np.testing.assert_allclose(after[1], before[0] * np.sqrt(2.0), rtol=1e-6)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_stopped_anywhere_the_file_is_the_same_to_the_bit(tmp_path, platform):
    def stop_after(limit):
        def progress(done, total):
            if done >= limit:
                raise KeyboardInterrupt

        return progress

    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    generate_md("GG", whole, 3, seed=5, platform=platform, **QUICK)
    for limit in (2, 5):  # once while it equilibrates, once while it records
        with pytest.raises(KeyboardInterrupt):
            generate_md("GG", parts, 3, seed=5, platform=platform, save_seconds=0, progress=stop_after(limit), **QUICK)
    with pytest.raises(InputError, match="the unfinished run had GG, None, 3"):
        generate_md("GG", parts, 4, seed=5, platform=platform, **QUICK)
    generate_md("GG", parts, 3, seed=5, platform=platform, **QUICK)
    assert parts.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"whole.npz", "parts.npz"}


def test_killed(tmp_path, dialanine):
    path = tmp_path / "AA.npz"
    code = (
        "from molgen.data.remd import generate_md\n"
        f"generate_md('AA', {str(path)!r}, 4, seed=7, temperatures=(310.0, 600.0), hot=2, settle=1, save_seconds=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    state, begin = tmp_path / "AA.state.npz", time.monotonic()
    while not state.exists() and process.poll() is None and time.monotonic() - begin < 60:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    generate_md("AA", path, 4, seed=7, **QUICK)
    assert path.read_bytes() == dialanine[0].read_bytes()


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "GG.state.npz").write_text("nothing")
    with pytest.raises(InputError, match="GG.state.npz: not an npz file(.|\n)*remove it"):
        generate_md("GG", tmp_path / "GG.npz", 2, **QUICK)
