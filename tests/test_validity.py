"""Validity of conformations: frames of molecular dynamics pass; mirror images and stretched bonds do not.

RDKit's CIP labels, from the same coordinates, are the independent judge of handedness.
"""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from molgen.data.peptide import Peptide, build_peptide
from molgen.data.stereochemistry import chiral_centres
from molgen.errors import InputError
from molgen.prose.validity import validate

MIRROR = np.array([1.0, 1.0, -1.0])


@pytest.fixture
def frames(shared: Path):
    """Positions (T, F, N, 3), Angstrom, of a sequence of the development set."""

    def read(sequence: str) -> np.ndarray:
        return np.load(shared / "data" / "peptides_md" / f"{sequence}.npz")["x"].astype(float) * 0.0005

    return read


def atom(peptide: Peptide, residue: int, name: str) -> int:
    return next(i for i, n in enumerate(peptide.names) if n == name and peptide.residue_index[i] == residue)


def beyond(peptide: Peptide, near: int, far: int) -> list[int]:
    """Atoms that hang on `far` when the bond near-far is cut."""
    graph = nx.Graph(peptide.bonds.tolist())
    graph.remove_edge(near, far)
    return sorted(nx.node_connected_component(graph, far))


def reflect(x: np.ndarray, atoms: list[int], plane: tuple[int, int, int]) -> np.ndarray:
    """Positions (N, 3) with `atoms` reflected in the plane of three atoms."""
    a, b, c = x[list(plane)]
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    moved = x.copy()
    moved[atoms] -= 2 * ((x[atoms] - a) @ normal)[:, None] * normal
    return moved


def inverted_beta(peptide: Peptide, x: np.ndarray, residue: int) -> np.ndarray:
    """The other hand at CB: what hangs on it is reflected in the plane N-CA-CB."""
    n, ca, cb = (atom(peptide, residue, name) for name in ("N", "CA", "CB"))
    return reflect(x, [i for i in beyond(peptide, ca, cb) if i != cb], (n, ca, cb))


def cip(peptide: Peptide, x: np.ndarray) -> dict[tuple[int, str], str]:
    """CIP labels of the stereocentres CA and CB by residue and name, by RDKit from positions (N, 3)."""
    from rdkit import Chem
    from rdkit.Chem import rdCIPLabeler

    mol = Chem.RWMol()
    for z in peptide.numbers:
        mol.AddAtom(Chem.Atom(int(z)))
    degree = np.bincount(peptide.bonds.ravel())
    for i, j in peptide.bonds.tolist():
        carbonyl = {peptide.names[i], peptide.names[j]} & {"O", "OD1", "OE1"} and min(degree[i], degree[j]) == 1
        mol.AddBond(i, j, Chem.BondType.DOUBLE if carbonyl else Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(x))
    for i, point in enumerate(x):
        conformer.SetAtomPosition(i, [float(v) for v in point])
    mol.AddConformer(conformer)
    for each in mol.GetAtoms():
        each.SetNoImplicit(True)
    mol.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(mol)
    Chem.AssignStereochemistryFrom3D(mol)
    rdCIPLabeler.AssignCIPLabels(mol)
    labels = {i: mol.GetAtomWithIdx(i).GetPropsAsDict().get("_CIPCode", "") for i in range(len(x))}
    return {(int(peptide.residue_index[i]), peptide.names[i]): label for i, label in labels.items() if label}


# frames of molecular dynamics


def test_every_file_passes(shared: Path, frames) -> None:
    """Each fortieth frame of the 129 files at 310 to 600 K. The set's isoleucines are allo: (R) at CB, see below."""
    files = sorted((shared / "data" / "peptides_md").glob("*.npz"))
    assert len(files) == 129
    for file in files:
        peptide, x = build_peptide(file.stem), frames(file.stem)[:, ::40]
        x = x.reshape(-1, *x.shape[2:])
        found = validate(peptide, x)
        assert not found.broken_topology.any(), file.stem
        assert found.wrong_chirality.all() if "I" in file.stem else not found.wrong_chirality.any(), file.stem
        assert not found.cis.any() and found.cis.shape == (len(x), len(file.stem) - 1), file.stem
        assert found.proline.tolist() == [letter == "P" for letter in file.stem[1:]]


@pytest.mark.parametrize("sequence", ["IC", "PI", "IQV", "EIHD"])
def test_isoleucine_of_the_data_set_is_allo_and_its_other_hand_is_right(sequence: str, frames) -> None:
    """L-isoleucine is (2S,3S)."""
    peptide, x = build_peptide(sequence), frames(sequence)[0, 3]
    residue = sequence.index("I")
    assert cip(peptide, x)[residue, "CB"] == "R"
    true = inverted_beta(peptide, x, residue)
    assert cip(peptide, true)[residue, "CB"] == "S" and cip(peptide, true)[residue, "CA"] == "S"
    assert validate(peptide, [x, true]).wrong_chirality.tolist() == [True, False]


# handedness


@pytest.mark.parametrize("sequence", ["AC", "TT", "CLDQ", "WY", "PNLG", "MTNY"])
def test_each_centre_by_itself_against_rdkit(sequence: str, frames) -> None:
    """S at CA, R for CYS, R at CB of THR. Inverting one centre changes its label, and the verdict."""
    peptide, x = build_peptide(sequence), frames(sequence)[3, 7]
    labels = cip(peptide, x)
    expected = {(r, "CA"): "R" if letter == "C" else "S" for r, letter in enumerate(sequence) if letter != "G"}
    expected |= {(r, "CB"): "R" for r, letter in enumerate(sequence) if letter == "T"}
    assert labels == expected
    assert len(chiral_centres(peptide)) == len(expected)
    for r, name in expected:
        if name == "CB":
            wrong = inverted_beta(peptide, x, r)
        elif sequence[r] == "P":
            continue  # the ring holds CB: no rigid part to reflect
        else:
            n, ca, c = (atom(peptide, r, k) for k in ("N", "CA", "C"))
            wrong = reflect(x, [atom(peptide, r, "HA"), *beyond(peptide, ca, atom(peptide, r, "CB"))], (n, ca, c))
            wrong = inverted_beta(peptide, wrong, r) if sequence[r] == "T" else wrong  # CB went along
        changed = cip(peptide, wrong)
        assert {key for key in labels if changed[key] != labels[key]} == {(r, name)}
        assert validate(peptide, [x, wrong]).wrong_chirality.tolist() == [False, True], (r, name)


def test_mirror_images_are_wrong_but_for_glycine(frames) -> None:
    for sequence in ("AC", "GG", "PS", "TCLQ", "GF"):
        peptide, x = build_peptide(sequence), frames(sequence)[0, ::50]
        found = validate(peptide, x * MIRROR)
        assert (found.wrong_chirality == (sequence != "GG")).all(), sequence
        assert not found.broken_topology.any()
        turned = Rotation.random(None, np.random.default_rng(0)).apply(x.reshape(-1, 3)).reshape(x.shape) + 5
        assert not validate(peptide, turned).wrong_chirality.any()


def test_exchanged_methyl_and_ethyl_of_isoleucine(frames) -> None:
    """Swapping the two groups of CB, atom positions and all, is what inverts it."""
    peptide, x = build_peptide("PI"), frames("PI")[0, 0]
    true = inverted_beta(peptide, x, 1)
    swapped = true.copy()
    a, b = atom(peptide, 1, "CG1"), atom(peptide, 1, "CG2")
    swapped[[a, b]] = true[[b, a]]
    assert validate(peptide, [true, swapped]).wrong_chirality.tolist() == [False, True]


def test_a_centre_that_is_half_inverted_is_wrong(frames) -> None:
    """The hydrogen or the centre on the wrong side of the other three; the rest alone looks right."""
    peptide, x = build_peptide("AC"), frames("AC")[0, 0]
    n, c, cb = (atom(peptide, 1, name) for name in ("N", "C", "CB"))
    for name in ("HA", "CA"):
        assert validate(peptide, [reflect(x, [atom(peptide, 1, name)], (n, c, cb))]).wrong_chirality.all(), name


# topology


def stretched(peptide: Peptide, x: np.ndarray, bond: int, factor: float) -> np.ndarray:
    """Positions with one bond `factor` times its force-field length; all beyond it moves along."""
    i, j = peptide.bonds[bond].tolist()
    step = (x[j] - x[i]) / np.linalg.norm(x[j] - x[i])
    moved = x.copy()
    target = x[i] + factor * peptide.parameters.bond_length[bond] * step
    moved[beyond(peptide, i, j)] += target - x[j]
    return moved


def test_stretched_and_squeezed_bonds(frames) -> None:
    peptide, x = build_peptide("MS"), frames("MS")[0, 0]
    for bond in range(len(peptide.bonds)):
        good = validate(peptide, [stretched(peptide, x, bond, f) for f in (0.76, 1.0, 1.24)])
        bad = validate(peptide, [stretched(peptide, x, bond, f) for f in (0.74, 1.26, 1.8)])
        assert not good.bad_bond.any() and bad.bad_bond.all(), peptide.bonds[bond]
        assert bad.broken_topology.all() and not bad.wrong_chirality.any()


def test_contacts_that_read_as_bonds(frames) -> None:
    """H to O: covalent radii 0.31 + 0.66, and 0.3 more."""
    peptide, x = build_peptide("AC"), frames("AC")[0, 0]
    h, o = atom(peptide, 0, "HB1"), atom(peptide, 1, "OXT")
    outward = x[o] - x.mean(0)
    outward /= np.linalg.norm(outward)
    near, apart = x.copy(), x.copy()
    near[h], apart[h] = x[o] + 1.25 * outward, x[o] + 1.3 * outward
    found = validate(peptide, [x, near, apart])
    assert found.contact.tolist() == [False, True, False]
    assert found.bad_bond.tolist() == [False, True, True], "its own bond is broken"


def test_coordinates_that_are_not_finite_are_a_broken_topology(frames) -> None:
    peptide, x = build_peptide("AC"), frames("AC")[0, :4].copy()
    x[1, 3, 0], x[2, 0, 2] = np.nan, np.inf
    found = validate(peptide, x)
    assert found.broken_topology.tolist() == [False, True, True, False]
    assert not found.wrong_chirality.any() and not found.contact.any() and not found.cis.any()


def test_many_samples_are_judged_in_pieces(frames, monkeypatch: pytest.MonkeyPatch) -> None:
    peptide, x = build_peptide("AC"), frames("AC")[0, :30].copy()
    x[17] = stretched(peptide, x[17], 3, 1.5)
    monkeypatch.setattr("molgen.prose.validity._CHUNK", 1000)
    assert np.flatnonzero(validate(peptide, x).bad_bond).tolist() == [17]


# cis


@pytest.mark.parametrize("sequence", ["AC", "CP", "PNLG"])
def test_cis_bonds_are_counted_and_are_no_error(sequence: str, frames) -> None:
    peptide, x = build_peptide(sequence), frames(sequence)[0, 0]
    c, n = atom(peptide, 0, "C"), atom(peptide, 1, "N")
    moving = beyond(peptide, c, n)
    for angle, cis in ((180, True), (120, True), (60, False)):
        axis = (x[n] - x[c]) / np.linalg.norm(x[n] - x[c])
        turned = x.copy()
        turned[moving] = Rotation.from_rotvec(np.radians(angle) * axis).apply(x[moving] - x[n]) + x[n]
        found = validate(peptide, [turned])
        assert found.cis[0, 0] == cis and not found.cis[0, 1:].any()
        assert not found.wrong_chirality.any() and not found.bad_bond.any()
    assert found.proline[0] == (sequence[1] == "P")


def test_caps_have_peptide_bonds_too() -> None:
    peptide = build_peptide("AP", "ace-nme")
    found = validate(peptide, np.random.default_rng(0).normal(size=(2, len(peptide), 3)))
    assert found.cis.shape == (2, 3) and found.proline.tolist() == [False, True, False]
    assert len(chiral_centres(peptide)) == 2


def test_summary_counts_and_weighs(frames) -> None:
    peptide, x = build_peptide("CP"), frames("CP")[0, :4].copy()
    x[0] *= MIRROR
    x[1] = stretched(peptide, x[1], 5, 1.5)
    found = validate(peptide, x).summary([0.5, 0.25, 0.25, 0.0])
    assert (found["n"], found["wrong_chirality"], found["broken_topology"], found["bad_bond"]) == (4, 1, 1, 1)
    assert found["share_wrong_chirality"] == 0.25 and found["share_wrong_chirality_reweighted"] == 0.5
    assert found["share_broken_topology_reweighted"] == 0.25
    assert found["cis"] is None and found["cis_proline"] == 0.0 == found["cis_proline_reweighted"]
    assert validate(peptide, x).valid.tolist() == [False, False, True, True]
    assert "share_wrong_chirality_reweighted" not in validate(peptide, x).summary()


def test_positions_of_another_molecule_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected: \(n, 23, 3\)"):
        validate(build_peptide("AA"), np.zeros((2, 22, 3)))
