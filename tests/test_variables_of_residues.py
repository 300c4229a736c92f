"""Variables of peptides, as people write them, against mdtraj and backbones of known torsions; what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.data.peptide import build_peptide
from molgen.errors import InputError
from molgen.variables import Molecule, backbone_torsions, check_start, parse_cv, torsion, values, values_and_gradients

CAPPED = build_peptide("AGP", cap="ace-nme")  # residues ACE 0, ALA 1, GLY 2, PRO 3, NME 4
TOPOLOGY = CAPPED.mdtraj_topology()
MOLECULE, BARE = Molecule(CAPPED.numbers, TOPOLOGY), Molecule(CAPPED.numbers)
ATOMS = len(CAPPED.numbers)
POSITIONS = np.random.default_rng(0).normal(size=(40, ATOMS, 3)) * 4


def trajectory():
    import mdtraj

    return mdtraj.Trajectory(POSITIONS / 10, TOPOLOGY)


def measured(text: str, molecule: Molecule = MOLECULE) -> np.ndarray:
    return values(parse_cv(text, molecule), POSITIONS)


def placed(a, b, c, length: float, angle: float, turn: float) -> np.ndarray:
    """The atom `length` from c, at `angle` c-b and torsion `turn` a-b-c (natural extension reference frame)."""
    u = (c - b) / np.linalg.norm(c - b)
    n = np.cross(b - a, u)
    n /= np.linalg.norm(n)
    local = length * np.array([-np.cos(angle), np.cos(turn) * np.sin(angle), np.sin(turn) * np.sin(angle)])
    return c + local @ np.stack([u, np.cross(n, u), n])


def backbone(phi: float, psi: float, residues: int):
    """Polyalanine backbone (1, 4R, 3) of N, CA, C, O with all torsions alike (degrees), and its topology."""
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    phi, psi, omega = np.radians([phi, psi, 180.0])
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.46, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for residue in range(1, residues + 1):
        n, ca, c = atoms[-3:]
        n2 = placed(n, ca, c, 1.33, np.radians(116.6), psi)
        atoms.insert(len(atoms), placed(n, ca, c, 1.23, np.radians(120.5), psi + np.pi))  # O opposite the next N
        if residue < residues:
            ca2 = placed(ca, c, n2, 1.46, np.radians(121.7), omega)
            atoms += [n2, ca2, placed(c, n2, ca2, 1.53, np.radians(111.0), phi)]
            atoms[-4:] = [atoms[-4], n2, ca2, atoms[-1]]
        made = topology.add_residue("ALA", chain)
        for name, element in (("N", "nitrogen"), ("CA", "carbon"), ("C", "carbon"), ("O", "oxygen")):
            topology.add_atom(name, getattr(mdtraj.element, element), made)
    topology.create_standard_bonds()
    return np.array(atoms)[None], topology


def test_distances():
    import mdtraj

    assert measured("distance 3 17") == pytest.approx(mdtraj.compute_distances(trajectory(), [[3, 17]])[:, 0] * 10)
    masses = np.array([atom.element.mass for atom in TOPOLOGY.atoms])

    def centre(selection: str) -> np.ndarray:
        atoms = TOPOLOGY.select(selection)
        return np.average(POSITIONS[:, atoms], axis=1, weights=masses[atoms])

    expected = np.linalg.norm(centre("resid 1") - centre("resid 3 and not name CA"), axis=-1)
    assert measured("distance resid 1 ; resid 3 and not name CA") == pytest.approx(expected, rel=1e-3)
    single = measured("distance resid 1 and name CA ; resid 3 and name CA")
    alphas = TOPOLOGY.select("name CA")
    assert single == pytest.approx(np.linalg.norm(POSITIONS[:, alphas[0]] - POSITIONS[:, alphas[2]], axis=-1))
    assert measured("end-to-end") == pytest.approx(single)  # caps have no alpha carbon


def test_angles_and_torsions():
    import mdtraj

    t = trajectory()
    assert measured("angle 0 4 9") == pytest.approx(mdtraj.compute_angles(t, [[0, 4, 9]])[:, 0], abs=1e-5)
    assert measured("torsion 4 6 8 14") == pytest.approx(mdtraj.compute_dihedrals(t, [[4, 6, 8, 14]])[:, 0], abs=1e-5)
    for name, compute in (("phi", mdtraj.compute_phi), ("psi", mdtraj.compute_psi)):
        atoms, values = compute(t)
        ours = backbone_torsions(TOPOLOGY)[name]
        assert sorted(ours.values()) == sorted(map(tuple, atoms)) and list(ours) == [1, 2, 3]
        for residue, column in zip(ours, values.T, strict=True):
            assert measured(f"{name} {residue}") == pytest.approx(column, abs=1e-5)
            assert np.array_equal(measured(f"{name}_{residue}"), measured(f"{name} {residue}"))


def test_torsion_sign_and_helix():
    positions, topology = backbone(-60.0, -45.0, 12)
    angles = backbone_torsions(topology)
    assert list(angles["phi"]) == list(range(1, 12)) and list(angles["psi"]) == list(range(11))
    for name, expected in (("phi", -60.0), ("psi", -45.0)):
        for atoms in angles[name].values():
            assert np.degrees(values(torsion(*atoms), positions)) == pytest.approx(expected)
    numbers = np.tile([7, 6, 6, 8], 12)

    def value(text: str, positions: np.ndarray) -> float:
        return float(values(parse_cv(text, Molecule(numbers, topology)), positions)[0])

    assert value("helicity", positions) == 1.0
    assert value("helicity dssp", positions) == pytest.approx(10 / 12)  # DSSP leaves out both ends
    strand, _ = backbone(-120.0, 130.0, 12)
    assert value("helicity", strand) == value("helicity dssp", strand) == 0.0
    assert value("end-to-end", strand) > 2 * value("end-to-end", positions)
    assert value("end-to-end", positions) == pytest.approx(11 * 1.5, abs=2)  # 1.5 A a residue


def test_helicity_is_the_share_of_residues_in_the_region():
    found = measured("helicity")
    inside = []
    for residue in (1, 2, 3):
        phi, psi = np.degrees(measured(f"phi {residue}")), np.degrees(measured(f"psi {residue}"))
        inside.append((phi > -100) & (phi < -30) & (psi > -67) & (psi < -7))
    assert found == pytest.approx(np.mean(inside, axis=0))
    assert found.max() > 0


def test_radius_of_gyration():
    """About the centre of mass; mdtraj.compute_rg weighs by mass, but about the centre of geometry."""
    masses = np.array([atom.element.mass for atom in TOPOLOGY.atoms])
    shift = POSITIONS - np.average(POSITIONS, axis=1, weights=masses)[:, None]
    expected = np.sqrt(np.average((shift**2).sum(-1), axis=1, weights=masses))
    assert measured("rg") == pytest.approx(expected, rel=1e-4)
    assert measured("rg all") == pytest.approx(measured("rg"))
    assert measured("rg resid 1 and name CA") == pytest.approx(0)


def test_without_a_topology():
    assert np.array_equal(measured("distance 3 17", BARE), measured("distance 3 17"))
    assert np.array_equal(measured("rg", BARE), measured("rg"))
    for text in ("phi 1", "helicity", "end-to-end", "rg all", "distance resid 0 ; resid 1"):
        with pytest.raises(InputError, match="no topology"):
            parse_cv(text, BARE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("distnace 3 17", ["no kind of variable 'distnace'", "helicity dssp", "torsion I J K L", "end-to-end"]),
        ("distance 3", ["1 atoms instead of 2", "distance I J"]),
        ("distance resid 0 ; resid 1 ; resid 2", ["3 groups of atoms instead of 2"]),
        ("distance 3 900", ["no atom '900'", f"0 to {ATOMS - 1}", "counted from 0"]),
        (f"distance 3 {ATOMS}", [f"no atom '{ATOMS}'"]),
        ("distance 3 -1", ["no atom '-1'"]),
        ("distance 3 x", ["no atom 'x'"]),
        ("distance 3 3", ["atoms 3 3 repeat"]),
        ("distance resid 1 ; residue 2", ["both groups are the same atoms"]),
        ("torsion 1 2 3", ["3 atoms instead of 4"]),
        ("distance resid 77 ; resid 1", ["'resid 77' is empty", "counts from 0"]),
        ("distance resid foo( ; resid 1", ["cannot be read", "mdtraj selection"]),
        ("rg < 4 or rg", ["selection '< 4 or rg' cannot be read (unexpected '<' at character 0)\n"]),
        ("phi 0", ["no residue '0' with phi", "1 (ALA), 2 (GLY), 3 (PRO)", "counted from 0"]),
        ("psi x", ["no residue 'x' with psi"]),
        ("phi", ["no residue '' with phi"]),
        ("helicity 3", ["does not take '3'"]),
        ("end-to-end 3", ["does not take '3'"]),
    ],
)
def test_errors_name_the_word_and_what_exists(text, says):
    with pytest.raises(InputError) as caught:
        parse_cv(text, MOLECULE)
    assert f"collective variable {text!r}" in str(caught.value)
    for part in says:
        assert part in str(caught.value)


def test_the_ends_of_two_chains_are_those_of_no_peptide():
    two = build_peptide("AA").mdtraj_topology().join(build_peptide("GG").mdtraj_topology())
    numbers = np.array([atom.element.atomic_number for atom in two.atoms])
    with pytest.raises(InputError, match=r"amino acids of 2 chains(?s:.*)resid 0 and name CA"):
        parse_cv("end-to-end", Molecule(numbers, two))
    assert parse_cv("PHI_1", Molecule(numbers, two)).definition == "phi 1"


def test_too_short_for_it():
    capped, bare = build_peptide("A", cap="ace-nme"), build_peptide("AA")
    _, single = backbone(-60.0, -45.0, 1)
    with pytest.raises(InputError, match="1 alpha carbons"):
        parse_cv("end-to-end", Molecule(capped.numbers, capped.mdtraj_topology()))
    with pytest.raises(InputError, match="no residue has both"):
        parse_cv("helicity", Molecule(bare.numbers, bare.mdtraj_topology()))
    with pytest.raises(InputError, match="none here"):
        parse_cv("phi 0", Molecule(np.array([7, 6, 6, 8]), single))


def test_units_and_periods():
    for text in ("phi 1", "psi 1", "torsion 0 1 2 3"):
        found = parse_cv(text, MOLECULE)
        assert (found.unit, found.period) == ("rad", 2 * np.pi)
    assert parse_cv("angle 0 1 2", BARE).period is None
    assert parse_cv(" RG ", BARE).unit == "A"


PUSHED = ["phi 1", "psi_2", "rg", "rg resid 1 to 3", "end-to-end", "distance resid 1 ; resid 3", "rg - 0.5*end-to-end"]


@pytest.mark.parametrize("text", PUSHED)
def test_gradients_are_those_of_finite_differences(text):
    cv, x, step = parse_cv(text, MOLECULE), POSITIONS[:2], 1e-5
    gradient = values_and_gradients([cv], x)[1][:, 0]
    along = np.random.default_rng(1).standard_normal(x.shape)
    expected = (values(cv, x + step * along) - values(cv, x - step * along)) / (2 * step)
    assert (gradient * along).sum((1, 2)) == pytest.approx(expected, rel=1e-5)
    check_start([cv], x[0])


@pytest.mark.parametrize("text", ["helicity", "helicity dssp"])
def test_steps_cannot_be_pushed_along(text):
    with pytest.raises(InputError, match=f"{text}.*no gradient"):
        values_and_gradients([parse_cv(text, MOLECULE)], POSITIONS)


def test_what_messages_call_it():
    with pytest.raises(InputError, match="observable 'phi 77'"):
        parse_cv("phi 77", MOLECULE, called="observable")
