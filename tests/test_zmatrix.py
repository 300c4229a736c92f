"""The z-matrix of every residue: exact both ways, volumes against brute force, chirality against RDKit."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import mdtraj
import networkx as nx
import numpy as np
import pytest
import torch
from rdkit import Chem
from torch import Tensor

from molgen.data.md import load_md
from molgen.data.peptide import RESIDUES, Peptide, build_peptide
from molgen.data.start import start_structure
from molgen.errors import InputError
from molgen.geometry.internal import log_volume, to_cartesian, to_internal, wrapped_angle
from molgen.prose.layout import Layout
from molgen.prose.limits import within
from molgen.prose.rows import Rows
from molgen.prose.zmatrix import build_zmatrix, canonical

KINDS = [kind for kind in RESIDUES if kind != "[HIE]"]  # the same as H
EVERY = pytest.mark.parametrize("kind", KINDS)


def forms(kind: str) -> list[Peptide]:
    """Alone between caps, at the C terminus, at the N terminus, both; ff14SB has no zwitterion of one residue."""
    return [build_peptide(kind, "ace-nme"), *(build_peptide(s) for s in (f"G{kind}", f"{kind}G", kind * 2))]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@cache
def internal(peptide: Peptide, n: int = 2) -> Tensor:
    """(n, N, 3) internal coordinates: bonds and angles near the force field's, broad torsions anywhere, rings closed.

    The force field's own angles in five-membered aromatic rings, up to 126 degrees, close no ring.
    """
    layout, noise = Layout.of(peptide), normal(n, len(peptide), 3, seed=len(peptide))
    q = torch.stack([layout.r0, layout.theta0, torch.zeros_like(layout.r0)], -1) + 0.03 * noise
    q[..., 2] *= 5
    for ring in (r for r in nx.minimum_cycle_basis(nx.Graph(layout.bonds.T.tolist())) if len(r) == 5):
        inner = [i for i in ring if {*layout.z.references[i, 1:].tolist()} <= {*ring} and not layout.z.closes[i]]
        q[:, inner, 1] += math.radians(108) - layout.theta0[inner]
    q[:, 0], q[:, 1, 1:], q[:, 2, 2] = 0, 0, 0
    ring = torch.tensor([rotor.closure is not None for rotor in layout.rotors])
    turns = 2 * math.pi * torch.rand(n, len(ring), generator=torch.Generator().manual_seed(1)).double() - math.pi
    q[:, layout.rotor_ranks, 2] = torch.where(ring, 0.2 * turns, turns)
    return q


@cache
def conformations(peptide: Peptide, n: int = 2) -> Tensor:
    """(n, N, 3) positions by rank, turned and moved, no coordinate exactly as the z-matrix made it."""
    x = to_cartesian(Layout.of(peptide).z, internal(peptide, n))
    turn = torch.linalg.qr(normal(3, 3, seed=2))[0]
    turn = turn * turn.det().sign()
    return x @ turn.mT + normal(1, 3, seed=3) + 1e-3 * normal(*x.shape, seed=4)


def distances(x: Tensor) -> Tensor:
    return (x[:, None] - x[:, :, None]).norm(dim=-1)


def cip(peptide: Peptide, x: np.ndarray) -> dict[str, set[str]]:
    """CIP codes that RDKit finds in positions (N, 3): "CA" of each kind of residue, "CB" of ILE and THR."""
    molecule = Chem.RWMol()
    for number in peptide.numbers.tolist():
        atom = Chem.Atom(number)
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    for i, j in peptide.bonds.tolist():
        molecule.AddBond(i, j, Chem.BondType.SINGLE)
    conformer = Chem.Conformer(len(peptide))
    for i, row in enumerate(x.tolist()):
        conformer.SetAtomPosition(i, row)
    molecule.AddConformer(conformer)
    molecule = molecule.GetMol()
    molecule.UpdatePropertyCache(strict=False)
    Chem.AssignStereochemistryFrom3D(molecule)
    found: dict[str, set[str]] = {}
    for i, atom in enumerate(molecule.GetAtoms()):
        residue, name = peptide.residue_names[peptide.residue_index[i]], peptide.names[i]
        if atom.HasProp("_CIPCode") and (name == "CA" or residue in ("ILE", "THR") and name == "CB"):
            found.setdefault(f"{residue} {name}", set()).add(atom.GetProp("_CIPCode"))
    return found


def expected_cip(peptide: Peptide) -> dict[str, set[str]]:
    """L amino acids: S at CA but for cysteine; (2S,3S)-isoleucine, (2S,3R)-threonine; glycine has no centre."""
    kinds = set(peptide.residue_names) - {"GLY", "ACE", "NME"}
    found = {f"{kind} CA": {"R" if kind == "CYS" else "S"} for kind in kinds}
    return found | {f"{kind} CB": {code} for kind, code in (("ILE", "S"), ("THR", "R")) if kind in kinds}


# the order and the references

RINGS = {"P": 1, "H": 1, "[HID]": 1, "[HIP]": 1, "F": 1, "Y": 1, "W": 2}


@EVERY
def test_every_atom_is_placed_once_and_from_placed_atoms(kind: str) -> None:
    for peptide, copies in zip(forms(kind), (1, 1, 1, 2), strict=True):
        z = Layout.of(peptide).z
        bonds = {frozenset(bond) for bond in peptide.bonds.tolist()}
        assert sorted(z.order) == list(range(len(peptide))) and (z.rank[z.order] == np.arange(len(z))).all()
        for i, (a, b, c) in enumerate(z.references.tolist()):
            used = [k for k in (a, b, c) if k >= 0]
            assert len(used) == min(i, 3) == len(set(used)) and max(used, default=-1) < i
            coordinates = [(i, c)] if i else []
            coordinates += [(i if z.closes[i] else c, b)] if i > 1 else []
            assert all(frozenset(z.order[[*pair]].tolist()) in bonds for pair in coordinates)
        assert z.closes.sum() == RINGS.get(kind, 0) * copies
        assert set(np.round(np.degrees(z.centre[z.fold == 0])).astype(int)) <= {0, 120, -120, 180}
        assert not z.centre[z.fold > 0].any()


def test_backbone_first_then_side_chains_then_rotors_of_hydrogens() -> None:
    peptide = build_peptide("VK", "ace-nme")
    z = Layout.of(peptide).z
    names = [peptide.names[i] for i in z.order]
    rotors = [i for i in range(len(z)) if z.fold[i] == 3]
    assert [names[i] for i in rotors] == ["HH31", "HG11", "HG21", "HZ1", "HH31"]
    backbone = max(i for i, name in enumerate(names) if name in ("N", "CA", "C"))
    side = [i for i, name in enumerate(names) if name[:2] in ("CG", "CD", "CE", "NZ")]
    assert backbone < min(side) and max(side) < min(rotors)
    assert max(i for i, name in enumerate(names) if name == "HA") < min(side), "rigid hydrogens do not wait"


@pytest.mark.parametrize(
    ("kind", "folds"),
    [
        ("A", {3: 1}), ("V", {3: 2}), ("L", {3: 2}), ("I", {3: 2}), ("T", {3: 1}), ("M", {3: 1}), ("K", {3: 1}),
        ("D", {2: 1}), ("E", {2: 1}), ("F", {2: 1}), ("Y", {2: 1}), ("R", {2: 3}), ("N", {2: 1}), ("Q", {2: 1}),
        ("G", {}), ("W", {}), ("H", {}), ("[HIP]", {}), ("S", {}), ("C", {}), ("P", {}),
    ],
)  # fmt: skip
def test_equal_substituents_make_a_dihedral_periodic(kind: str, folds: dict[int, int]) -> None:
    """Methyl, ammonium, carboxylate, amide NH2, guanidinium, phenyl."""
    layout = Layout.of(build_peptide(kind, "ace-nme"))
    own = [r.fold for r in layout.rotors if layout.peptide.residue_index[layout.z.order[r.rank]] == 1]
    assert {m: own.count(m) for m in sorted(set(own) - {1})} == folds


def test_charged_termini_are_periodic() -> None:
    assert sorted(r.fold for r in Layout.of(build_peptide("GG")).rotors if r.fold > 1) == [2, 3], "COO- and NH3+"


def test_other_molecules_are_refused() -> None:
    p = build_peptide("AG")
    bonds = p.bonds[~(p.bonds == p.names.index("CB")).any(1) | (p.bonds == p.names.index("HB1")).any(1)]
    with pytest.raises(InputError, match=r"residue 1: atom \d+ \(CB\) is not bonded to the backbone"):
        build_zmatrix(p.names, p.residue_index, p.residue_names, p.numbers, bonds)
    names = ["C1" if name == "CA" else name for name in p.names]
    with pytest.raises(InputError, match=r"residue 1 \(ALA\) has no atom CA"):
        build_zmatrix(names, p.residue_index, p.residue_names, p.numbers, p.bonds)


# both ways


@EVERY
def test_round_trip(kind: str) -> None:
    for peptide in forms(kind):
        z, x, q = Layout.of(peptide).z, conformations(peptide), internal(peptide)
        back = to_cartesian(z, to_internal(z, x))
        assert (distances(back) - distances(x)).abs().max() < 1e-9
        assert (handedness(peptide, back) - handedness(peptide, x)).abs().max() < 1e-9
        off = to_internal(z, to_cartesian(z, q)) - q
        assert torch.stack([*off.unbind(-1)[:2], wrapped_angle(off[..., 2])]).abs().max() < 1e-9


def handedness(peptide: Peptide, x: Tensor) -> Tensor:
    """(B, K) signed volumes of all chains of four bonded atoms, x by rank."""
    rank = torch.from_numpy(Layout.of(peptide).z.rank.copy())
    a, b, c, d = (x[:, rank[k]] for k in torch.from_numpy(peptide.parameters.torsions.copy()).T)
    return (torch.linalg.cross(b - a, c - a) * (d - a)).sum(-1)


@EVERY
def test_log_volume_is_the_jacobian(kind: str) -> None:
    """All 3N coordinates from the 3N - 6 internal ones, a shift and a turn: one determinant, by autograd."""
    for peptide in forms(kind):
        z = Layout.of(peptide).z
        n = len(z)
        present = torch.ones(n, 3, dtype=torch.bool).tril(-1)
        present[3:] = True
        q = to_internal(z, conformations(peptide)[:1])
        rows = q.expand(3 * n, -1, -1).clone().requires_grad_()  # one copy for each row of the Jacobian
        x = to_cartesian(z, rows)
        (jacobian,) = torch.autograd.grad(x.flatten(1).diagonal().sum(), rows)
        x = x[0].detach()
        rigid = [torch.eye(3).double().repeat(n, 1)]
        rigid += [torch.linalg.cross(axis.expand(n, 3), x).flatten()[:, None] for axis in torch.eye(3).double()]
        expected = torch.linalg.slogdet(torch.cat([jacobian[:, present], *rigid], 1))[1]
        assert abs(float(log_volume(z, q, x[None])) - float(expected)) < 1e-8, peptide.sequence


def test_angles_and_dihedrals_have_the_usual_signs() -> None:
    """Against mdtraj, in single precision."""
    peptide = build_peptide("PW")
    z, x = Layout.of(peptide).z, conformations(peptide)
    q = to_internal(z, x)
    frames = mdtraj.Trajectory(x.numpy() / 10, peptide.mdtraj_topology())
    ranks = np.arange(3, len(z))
    plain = ranks[~z.closes[3:]]
    dihedrals = mdtraj.compute_dihedrals(frames, np.column_stack([z.references[ranks], ranks]), periodic=False)
    assert wrapped_angle(torch.from_numpy(dihedrals - z.centre[ranks]) - q[:, ranks, 2]).abs().max() < 1e-4
    angles = mdtraj.compute_angles(frames, np.column_stack([z.references[plain, 1:], plain]), periodic=False)
    assert np.abs(angles - q[:, plain, 1].numpy()).max() < 1e-4
    closing = np.flatnonzero(z.closes)
    assert len(closing) == 3
    assert torch.allclose(q[:, closing, 1], (x[:, closing] - x[:, z.references[closing, 1]]).norm(dim=-1))


def test_gradients_pass_through() -> None:
    peptide = build_peptide("P", "ace-nme")
    z = Layout.of(peptide).z
    q = internal(peptide).clone().requires_grad_()
    x = to_cartesian(z, q)
    (gradient,) = torch.autograd.grad(x.square().sum() + log_volume(z, q, x).sum(), q)
    gradient = gradient[:, 1:]  # the first atom has no coordinates
    assert torch.isfinite(gradient).all() and (gradient.abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("sequence", ["PGG", "GPG", "GGP", "PPP", "WFH"])
def test_rings_close_at_both_ends_and_in_the_middle(sequence: str) -> None:
    """Every bond of a ring, the closing ones too, has the length that was asked."""
    peptide = build_peptide(sequence)
    z, q = Layout.of(peptide).z, internal(peptide)
    x = to_cartesian(z, q)
    for i in np.flatnonzero(z.closes):
        for k, reference in ((0, 2), (1, 1)):
            length = (x[:, i] - x[:, z.references[i, reference]]).norm(dim=-1)
            assert torch.allclose(length, q[:, i, k], atol=1e-12)
    ideal = torch.from_numpy(peptide.parameters.bond_length.copy())
    ends = torch.from_numpy(z.rank[peptide.bonds].T.copy())
    assert ((x[:, ends[0]] - x[:, ends[1]]).norm(dim=-1) - ideal).abs().max() < 0.15, "noise of 0.03, four sigma"


# stereochemistry


@EVERY
def test_narrow_dihedrals_near_zero_are_l_amino_acids(kind: str) -> None:
    for peptide in forms(kind):
        x = conformations(peptide)[0, torch.from_numpy(Layout.of(peptide).z.rank.copy())].numpy()
        assert cip(peptide, x) == expected_cip(peptide)
        assert cip(peptide, -x) != expected_cip(peptide) or set(peptide.residue_names) <= {"GLY", "ACE", "NME"}


@EVERY
def test_real_conformers_have_narrow_dihedrals_near_their_centre(kind: str) -> None:
    """Embedded by RDKit, minimised by OpenMM: neither knows of the z-matrix."""
    peptide = build_peptide(kind, "ace-nme")
    layout = Layout.of(peptide)
    x = torch.from_numpy(start_structure(peptide))[None, layout.order]
    assert cip(peptide, x[0, torch.from_numpy(layout.z.rank.copy())].numpy()) == expected_cip(peptide)
    q = to_internal(layout.z, canonical(layout.z, x))
    assert q[:, layout.narrow, 2].abs().max() < 0.35
    assert (q[..., 0] - layout.r0)[:, 1:].abs().max() < 0.1
    assert (q[..., 1] - layout.theta0)[:, 2:].abs().max() < 0.3, "angle, or length where a ring closes"


@pytest.mark.parametrize("sequence", ["AC", "CP", "CW", "EY", "FH", "LD", "ATH", "CLDQ"])
def test_frames_of_molecular_dynamics_have_narrow_dihedrals_near_their_centre(sequence: str, shared: Path) -> None:
    path = shared / "data" / "peptides_md" / f"{sequence}.npz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    data = load_md(path)
    layout = Layout.of(data.peptide)
    x = canonical(layout.z, torch.from_numpy(data.positions[0, ::20]).double()[:, layout.order])
    q = to_internal(layout.z, x)
    narrow = q[:, layout.narrow, 2].abs()
    assert within(Rows.of(layout, range(layout.atoms)), x, q).all()
    assert narrow.median() < 0.15 and (narrow > 0.6).float().mean() < 0.01
    assert (distances(to_cartesian(layout.z, q)) - distances(x)).abs().max() < 1e-9


# labels

PAIRS = {  # of prochiral hydrogens (CH2, and the last two of each CH3 and NH3+) and of whole methyl groups
    "A": "HB2", "C": "HB2", "D": "HB2", "E": "HB2 HG2", "F": "HB2", "G": "HA2", "H": "HB2", "I": "HG12 HG22 HD12",
    "K": "HB2 HG2 HD2 HE2 HZ2", "L": "HB2 CD2 HD12 HD22", "M": "HB2 HG2 HE2", "N": "HB2", "P": "HB2 HG2 HD2",
    "Q": "HB2 HG2", "R": "HB2 HG2 HD2", "S": "HB2", "T": "HG22", "V": "CG2 HG12 HG22", "W": "HB2", "Y": "HB2",
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_exchanged_labels_are_put_right_and_no_others(kind: str) -> None:
    """Exchange by name what is equivalent; every combination of two exchanges besides."""
    peptide = build_peptide(kind, "ace-nme")
    z = Layout.of(peptide).z
    own = [s for s in z.swaps if peptide.residue_index[z.order[s[0]]] == 1]
    assert sorted(peptide.names[z.order[look]] for look, _, _ in own) == sorted(PAIRS[kind].split())
    x = canonical(z, conformations(peptide))
    assert torch.equal(canonical(z, x), x)
    exchanged = [exchange(peptide, x, name) for name in PAIRS[kind].split()]
    exchanged += [exchange(peptide, y, PAIRS[kind].split()[0]) for y in exchanged[1:]]
    for y in exchanged:
        assert not torch.equal(y, x) and torch.equal(canonical(z, y), x)
    mixed = torch.stack([x[0], exchanged[0][1]])
    assert torch.equal(canonical(z, mixed), x), "each conformation of a batch for itself"


def exchange(peptide: Peptide, x: Tensor, name: str) -> Tensor:
    """Positions by rank in which `name` (and what hangs on it) and its twin have traded labels."""
    twin = name[:-1] + {"H": "3", "C": "1"}[name[0]]
    branches = []
    for top in (name, twin):
        stem = f"H{top[1:]}" if top[0] == "C" else None
        inside = (i for i, r in enumerate(peptide.residue_index) if r == 1)
        branches.append([i for i in inside if peptide.names[i] == top or stem and peptide.names[i].startswith(stem)])
    assert len(branches[0]) == len(branches[1]) == (1 if name[0] == "H" else 4)
    rank = Layout.of(peptide).z.rank
    y = x.clone()
    y[:, rank[branches[0]]], y[:, rank[branches[1]]] = x[:, rank[branches[1]]], x[:, rank[branches[0]]]
    return y


@pytest.mark.parametrize("sequence", ["AI", "TL"])
def test_mirror_images_are_not_put_right(sequence: str) -> None:
    peptide = build_peptide(sequence)
    layout = Layout.of(peptide)
    x = conformations(peptide)
    x = canonical(layout.z, x * x.new_tensor([1.0, 1.0, -1.0]))
    assert not within(Rows.of(layout, range(layout.atoms)), x, to_internal(layout.z, x)).any()
