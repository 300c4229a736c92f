"""Internal coordinates of any molecule: exact both ways, volumes against brute force, ln Z of a known integral."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from rdkit import Chem
from rdkit.Chem import AllChem

from molgen.cvdiffusion.controller import ControllerConfig, build_controller
from molgen.cvdiffusion.internal import WIDTH, InternalSpace, tree_zmatrix
from molgen.cvdiffusion.noising import Schedule, fit_variances, simulate
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph
from molgen.geometry.internal import to_internal
from molgen.potentials.xtb import XtbPotential
from molgen.reweight.importance import diagnose
from molgen.variables.of_atoms import torsion
from molgen.workflows.fes_problem import Problem, coordinates_of
from molgen.workflows.fes_settings import default_settings
from molgen.workflows.fes_system import System, system_from_pdb

ALA2 = Path(__file__).parent.parent / "examples/fes_ala2/ala2.pdb"
MOLECULES = {
    "ethanol": "CCO",
    "alanine": "CC(N)C(=O)O",
    "cyclobutane": "C1CCC1",
    "toluene": "Cc1ccccc1",
    "peroxide": "OO",
}


def built(smiles: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, bonds and a conformation."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    x = molecule.GetConformer().GetPositions()
    return numbers, bond_graph(numbers, x), x


def shaken(x: np.ndarray, count: int, size: float = 0.05) -> np.ndarray:
    return x + size * np.random.default_rng(0).standard_normal((count, *x.shape))


def space_of(smiles: str, fixed: bool = False) -> tuple[InternalSpace, np.ndarray]:
    """The space and frames; `fixed`: every atom told apart, so that no rotor is taken for threefold."""
    numbers, bonds, x = built(smiles)
    frames = shaken(x, 200)
    return InternalSpace.whitened(tree_zmatrix(numbers, bonds, x, range(len(x)) if fixed else ()), frames), frames


@pytest.mark.parametrize("name", MOLECULES)
def test_points_and_positions_are_the_same_geometry(name: str):
    space, frames = space_of(MOLECULES[name], fixed=True)
    points = space.points(frames[:20], np.random.default_rng(1))
    placed = space.place(points)
    assert placed.inside.all() and points.shape == (20, *space.shape) and space.dimensions == 3 * space.atoms - 6
    for one, other in zip(placed.positions, frames, strict=False):
        apart = [np.linalg.norm(x[:, None] - x, axis=-1) for x in (one, other)]
        assert np.abs(apart[0] - apart[1]).max() < 1e-9
    at = torch.from_numpy(frames[:20, space.z.order])
    again = torch.from_numpy(placed.positions[:, space.z.order])
    assert (
        torch.cos(to_internal(space.z, at)[..., 2] - to_internal(space.z, again)[..., 2]).min() > 1 - 1e-9
    )  # hand too


@pytest.mark.parametrize("name", ["ethanol", "cyclobutane", "peroxide"])
def test_the_volume_is_the_jacobian_and_its_slope_the_gradient(name: str):
    space, frames = space_of(MOLECULES[name])
    point = space.points(frames[:1], np.random.default_rng(1))

    def differential(x: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
        """(M, 3N) of the internal coordinates, by differences: autograd stumbles over the first three atoms."""
        columns = []
        for k in range(x.numel()):
            e = torch.zeros(x.numel(), dtype=x.dtype)
            e[k] = step
            up, down = (to_internal(space.z, x + s * e.view(x.shape))[0, space.rows, space.columns] for s in (1, -1))
            columns.append((up - down) / (2 * step))
        return torch.stack(columns, 1)

    # dx = (what rigid motions span) dq / |dq/dx across them|; the determinant below is that times what they span
    moved = point + 0.3 * np.random.default_rng(2).standard_normal(point.shape)
    x, y = (torch.from_numpy(space.place(p).positions[:, space.z.order]) for p in (point, moved))

    def log_density(j: torch.Tensor, x: torch.Tensor) -> float:
        axes, centred = torch.eye(3, dtype=x.dtype), x[0] - x[0].mean(0)
        rigid = [axis.expand_as(centred).reshape(-1) for axis in axes]
        rigid += [torch.linalg.cross(axis.expand_as(centred), centred).reshape(-1) for axis in axes]
        spanned = torch.stack(rigid)
        return float(torch.logdet(spanned @ spanned.T)) - float(torch.linalg.slogdet(torch.cat([j, spanned]))[1])

    winding = [float(space._log_winding(torch.from_numpy(p[..., 0]))) for p in (point, moved)]
    found = [float(space.place(p).log_volume[0]) - w for p, w in zip((point, moved), winding, strict=True)]
    brute = [log_density(differential(a), a) for a in (x, y)]
    assert found[1] - found[0] == pytest.approx(brute[1] - brute[0], abs=1e-6)
    for k in (0, space.dimensions - 1):
        step = np.zeros(point.shape)
        step[0, k] = 1e-5
        slope = (space.place(point + step).log_volume - space.place(point - step).log_volume) / 2e-5
        assert space.place(point).volume_slope[0, k, 0] == pytest.approx(slope[0], abs=1e-6)


def test_gradients_are_pulled_back():
    space, frames = space_of(MOLECULES["alanine"])
    points = space.points(frames[:3], np.random.default_rng(1))
    weights = np.random.default_rng(3).standard_normal((2, 3, space.atoms, 3))

    def value(p: np.ndarray) -> np.ndarray:
        return np.einsum("knai,nai->kn", weights, space.place(p).positions)

    pulled = space.pull(points, weights)
    for k in range(0, space.dimensions, 5):
        step = np.zeros(points.shape)
        step[:, k] = 1e-5
        slope = (value(points + step) - value(points - step)) / 2e-5
        assert pulled[:, :, k, 0] == pytest.approx(slope, abs=1e-6)


def single_winding(phi: float, period: float) -> float:
    """ln w of a dihedral about which nothing is equal, over its sum over whole turns."""
    many = -2 * ((phi + 2 * np.pi * np.arange(-20, 21)) / period) ** 2
    return -2 * (phi / period) ** 2 - float(np.log(np.exp(many).sum()))


@pytest.mark.parametrize(("smiles", "fold"), [("CC", 3), ("C=C", 2), ("C[NH3+]", 3)])
def test_the_names_of_equal_atoms_share_the_density_of_a_geometry(smiles: str, fold: int):
    """However unevenly they are spaced: windings and names sum to 1, with 0.9 to 1.1 where even spacing is assumed."""
    space, frames = space_of(smiles)
    (ranks,), own = space.equal, int(np.flatnonzero(space.periods)[0])
    assert len(ranks) == fold and space.broad.sum() == 1
    atoms = space.z.order[ranks]
    total = np.zeros(len(frames))
    for shift in range(fold):
        x = frames.copy()
        x[:, atoms] = frames[:, np.roll(atoms, shift)]
        y = (space._internal(x) - space.mean) @ space.whiten
        for turn in range(-8, 9):
            wound = y.clone()
            wound[:, own] += 2 * np.pi * turn
            total += space._log_winding(wound).exp().numpy()
    assert total == pytest.approx(1, abs=1e-9)
    turned = space.relabelled(frames, np.random.default_rng(2))
    named = (turned[:, atoms[:1]] == frames[:, atoms]).all(-1)
    assert (named.sum(1) == 1).all() and named.mean(0) == pytest.approx(np.full(fold, 1 / fold), abs=0.12)  # of 200
    rest = np.setdiff1d(np.arange(space.atoms), [a for ranks in space.equal for a in space.z.order[ranks]])
    assert np.array_equal(turned[:, rest], frames[:, rest])
    assert np.array_equal(np.sort(turned[:, atoms], axis=1), np.sort(frames[:, atoms], axis=1))
    hand = [np.sign(np.linalg.det(x[:, atoms] - x[:, [space.z.order[space.z.references[ranks[0], 2]]]]))
            for x in (turned, frames) if fold == 3]  # fmt: skip
    assert all(np.array_equal(h, hand[0]) for h in hand)


def test_windings_share_the_density_of_a_geometry():
    space, frames = space_of(MOLECULES["ethanol"])
    assert sorted(space.periods[space.periods > 0]) == pytest.approx([2 * np.pi / 3, 2 * np.pi])
    y = torch.zeros(41, space.dimensions, dtype=torch.float64)
    at = int(np.flatnonzero(space.periods == 2 * np.pi)[0])
    shifted = y.clone()
    shifted[:, at] = 0.3 + 2 * np.pi * torch.arange(-20, 21)
    off = float(space._log_winding(shifted[20:21])) - single_winding(0.3, 2 * np.pi)  # of the methyl group
    assert float(space._log_winding(shifted).exp().sum()) == pytest.approx(np.exp(off), rel=1e-6)
    shares = space.points(np.repeat(frames[:1], 4000, 0), np.random.default_rng(5))
    at = int(np.flatnonzero(space.periods == 2 * np.pi)[0])
    values, counts = np.unique(np.round(shares[:, at, 0], 6), return_counts=True)
    expected = np.exp(-2 * (values / (2 * np.pi)) ** 2)
    assert counts / 4000 == pytest.approx(expected / expected.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("name", "folds"),
    [("CH3CH2NH2", [1, 3]), ("CH3CONH2", [2, 3]), ("isobutene", [2, 3, 3]), ("CH3CH2OH", [1, 3])],
)
def test_a_rotor_turned_by_its_period_is_the_same_molecule(name: str, folds: list[int]):
    """But for the names of its equal atoms: a methyl group is, the two hydrogens of an amine are 115 degrees apart."""
    numbers, x = molecule(name).numbers, molecule(name).positions
    space = InternalSpace.whitened(tree_zmatrix(numbers, bond_graph(numbers, x), x), shaken(x, 200))
    broad = [k for k, period in enumerate(space.periods) if period]
    assert sorted(round(2 * np.pi / space.periods[k]) for k in broad) == folds
    points = space.points(x[None], np.random.default_rng(0))
    for k in broad:
        turned = points.copy()
        turned[:, k] += space.periods[k]
        here, there = (space.place(p).positions[0] for p in (points, turned))
        lengths = [np.sort(np.linalg.norm(x[:, None] - x, axis=-1).ravel()) for x in (here, there)]
        assert np.abs(lengths[0] - lengths[1]).max() < 0.2


def test_ln_z_of_springs_and_a_rotor_is_the_known_integral():
    """Hydrogen peroxide with springs in r and theta and a threefold torsion: Z is a product of integrals."""
    numbers, bonds, x = built("OO")
    z = tree_zmatrix(numbers, bonds, x)
    springs, bend, turn = 800.0, 60.0, 1.0  # in kT
    start = to_internal(z, torch.from_numpy(x)[None, z.order])[0]

    def energy(q: torch.Tensor) -> torch.Tensor:
        r, theta, phi = q[:, 1:, 0] - start[1:, 0], q[:, 2:, 1] - start[2:, 1], q[:, 3, 2]
        return springs / 2 * r.square().sum(1) + bend / 2 * theta.square().sum(1) + turn * torch.cos(3 * phi)

    rng, count = np.random.default_rng(0), 4000
    q = start.repeat(count, 1, 1)
    q[:, 1:, 0] += torch.from_numpy(rng.standard_normal((count, 3))) / springs**0.5
    q[:, 2:, 1] += torch.from_numpy(rng.standard_normal((count, 2))) / bend**0.5
    angles = np.linspace(-np.pi, np.pi, 2000, endpoint=False)
    share = np.exp(-turn * np.cos(3 * angles))
    q[:, 3, 2] = torch.from_numpy(rng.choice(angles, count, p=share / share.sum()))
    from molgen.geometry.internal import to_cartesian

    frames = to_cartesian(z, q)[:, torch.from_numpy(z.rank)].numpy()
    space = InternalSpace.whitened(z, frames)
    periods = tuple(space.periods.tolist())
    config = ControllerConfig("internal", tuple(numbers.tolist()), width=WIDTH, least=0.05, periods=periods, hidden=64)
    torch.manual_seed(0)
    net, schedule = build_controller(config), Schedule(end=0.05, steps=40)
    points = torch.from_numpy(space.points(frames, rng))
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    low, high = np.log(schedule.end**2), np.log(schedule.start)
    for _ in range(600):
        chosen, r = torch.from_numpy(rng.integers(count, size=256)), torch.from_numpy(rng.uniform(low, high, 256)).exp()
        noise = torch.from_numpy(rng.standard_normal((256, *space.shape)))
        noisy = points[chosen] + noise * r[:, None, None].sqrt()
        error = net(r.float(), noisy.float()) * r[:, None, None].sqrt().float() + noise.float()
        optimiser.zero_grad()
        error.square().mean().backward()
        optimiser.step()
    variances = fit_variances(net, schedule, space, points.numpy(), np.full(count, 1 / count), 0)
    found = simulate(net, schedule, variances, space, count, 0)
    placed = space.place(found.points)
    inner = to_internal(z, torch.from_numpy(placed.positions[:, z.order]))
    log_w = np.where(placed.inside, found.log_path + placed.log_volume - energy(inner).numpy(), -np.inf)
    weights = diagnose(log_w)
    r0, t0 = start[1:, 0].numpy(), start[2:, 1].numpy()
    grid = np.linspace(-0.5, 0.5, 4001)
    lengths = sum(np.log(np.trapezoid((r + grid) ** 2 * np.exp(-springs / 2 * grid**2), grid)) for r in r0)
    wide = np.linspace(-1.2, 1.2, 4001)
    bends = sum(
        np.log(np.trapezoid(np.clip(np.sin(t + wide), 0, None) * np.exp(-bend / 2 * wide**2), wide)) for t in t0
    )
    exact = lengths + bends + np.log(2 * np.pi * share.mean())
    assert weights.khat < 0.7 and weights.ess > 0.2
    assert weights.log_z == pytest.approx(exact, abs=4 * weights.log_z_error + 1e-3)


def test_what_has_no_internal_coordinates_is_refused():
    numbers, bonds, x = built("OO")
    with pytest.raises(InputError, match="fragments"):
        tree_zmatrix(numbers, np.zeros_like(bonds), x)
    numbers, bonds, x = built("CC#N")
    with pytest.raises(InputError, match="on a line"):
        tree_zmatrix(numbers, bonds, x)


def test_a_force_field_without_rings_chooses_internal_coordinates():
    system = system_from_pdb([ALA2], ["amber14/protein.ff14SB.xml"])
    phi, bare = ["phi 1"], System(system.potential, system.starts)
    assert coordinates_of(system, "auto", phi) == "internal"
    assert coordinates_of(system, "cartesian", phi) == "cartesian"
    turn, loose = "t = torsion 4 6 8 14", "torsion 0 6 8 14"
    assert coordinates_of(bare, "auto", torsion(0, 1, 2, 99)) == "cartesian", (
        "atoms that are not there are refused later"
    )
    for spelt in ("torsion_4_6_8_14", "Torsion 14  8 6 4", "torsion 14 8 6 4"):
        assert coordinates_of(bare, "auto", spelt) == "internal", spelt
    for cvs, kind in (([turn], "internal"), ([loose], "cartesian"), ([turn, "distance 0 1"], "cartesian")):
        assert coordinates_of(bare, "auto", cvs) == kind, cvs  # bonds may break where more than a bond is turned
    assert default_settings("internal").sampler.draws > default_settings("cartesian").sampler.draws
    z = tree_zmatrix(system.numbers, system.bonds, system.starts[0])
    assert sorted(z.fold[z.fold > 0]) == [1, 1, 1, 1, 3, 3, 3]  # two omega, phi, psi; three methyl groups
    fixed = tree_zmatrix(system.numbers, system.bonds, system.starts[0], fixed={0})
    assert sorted(fixed.fold[fixed.fold > 0]) == [1, 1, 1, 1, 1, 3, 3]  # a variable sees one of its hydrogens


def test_torsions_that_are_no_chain_are_pointed_out():
    """The usual reason is another order of atoms in the file than the one the numbers are from."""
    system = system_from_pdb([ALA2], ["amber14/protein.ff14SB.xml"])
    for text, expected in (("torsion 4 6 8 10", 0), ("torsion 4 6 8 13", 1)):
        problem = Problem.of(system, [text], 300.0, None, [], default_settings("internal"))
        notes = problem._unbonded()
        assert len(notes) == expected and all("8 and 13 are not bonded" in note for note in notes)


def test_a_point_without_a_geometry_is_rejected_and_counted():
    system = system_from_pdb([ALA2], ["amber14/protein.ff14SB.xml"])
    problem = Problem.of(system, ["torsion 4 6 8 14"], 300.0, None, [], default_settings("internal"))
    frames = system.starts + 0.02 * np.random.default_rng(0).standard_normal((200, 22, 3))
    space = InternalSpace.whitened(problem.zmatrix(), frames)
    target = problem.target(space)
    points = space.points(frames[:4], np.random.default_rng(1))
    points[1] += 500.0 * (space.periods == 0)[:, None]  # bonds and angles far beyond any
    batch = target.evaluate(points, np.zeros(4), 1)
    assert batch.accepted.tolist() == [True, False, True, True] and target.rejections == {"no geometry": 1}
    assert np.isneginf(target.log_weights(batch)[1]) and (batch.gradient[1] == 0).all()


def test_a_nitrogen_that_may_turn_inside_out_is_sampled_in_cartesian_coordinates():
    """An amide's is flat, a sulfoxide keeps its hand; dimethylamine's is flat in this start, and does not stay so."""
    invertible = {
        "NO": [0],
        "CNC": [1],
        "NCCO": [0],
        "CC(N)=O": [],
        "C[N+](=O)[O-]": [],
        "Nc1ccccc1": [],
        "CS(C)=O": [],
    }
    for smiles, expected in invertible.items():
        numbers, bonds, x = built(smiles)
        system = System(XtbPotential(numbers), x[None])
        assert system.invertible() == expected, smiles
        chain = next((c for c in system.chains() if bonds[c[0], c[1]] and bonds[c[2], c[3]]), None)
        if chain is not None and smiles != "Nc1ccccc1":
            torsion = "torsion " + " ".join(map(str, chain))
            assert coordinates_of(system, "auto", torsion) == ("cartesian" if expected else "internal"), smiles
            assert coordinates_of(system, "internal", torsion) == "internal"
