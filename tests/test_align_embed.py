"""Superposition against SciPy, and the sqrt-distance guess: exact where it can be, and blind to what means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from equivariance import orthogonal
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation
from torch import Tensor

from molgen.data.reactions import Reaction, load_npz
from molgen.geometry.align import chained, kabsch, rmsd, rmsd_of, rmsds_of, superpose, superpose_fragments
from molgen.geometry.embed import embed_distances, place_together, sqrt_distance_guess

NAMES = ("CH3CH2OH", "C6H6", "HCN", "CH3COCl")


def positions(name: str) -> Tensor:
    return torch.from_numpy(molecule(name).positions)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def padded(reactions: Sequence[Reaction]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reactant, product (B, N, 3) and fragment indices (B, N), -1 for padding."""
    n = max(len(r) for r in reactions)

    def fill(rows: list[np.ndarray], value: float) -> Tensor:
        out = np.full((len(rows), n, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
        for k, row in enumerate(rows):
            out[k, : len(row)] = row
        return torch.from_numpy(out)

    return (
        fill([r.reactant for r in reactions], 0.0),
        fill([r.product for r in reactions], 0.0),
        fill([r.reactant_fragments for r in reactions], -1),
        fill([r.product_fragments for r in reactions], -1),
    )


def moved(reaction: Reaction, seed: int) -> Reaction:
    """The same reaction with each fragment of each side turned and shifted at random."""
    rng = np.random.default_rng(seed)

    def scatter(x: np.ndarray, fragments: np.ndarray) -> np.ndarray:
        out = x.copy()
        for k in np.unique(fragments):
            out[fragments == k] = Rotation.from_quat(rng.normal(size=4)).apply(x[fragments == k]) + rng.normal(0, 8, 3)
        return out

    return replace(
        reaction,
        reactant=scatter(reaction.reactant, reaction.reactant_fragments),
        product=scatter(reaction.product, reaction.product_fragments),
    )


@pytest.fixture(scope="module")
def val(rdb7_path: Path) -> list[Reaction]:
    """Forty validation reactions, half with several products, the last four run backwards."""
    every = load_npz(rdb7_path, "val")
    one = [r for r in every if r.product_fragments.max() == 0][:20]
    several = [r for r in every if r.product_fragments.max() > 0][:20]
    chosen = one + several
    return chosen[:-4] + [r.reversed for r in chosen[-4:]]


# ---------------------------------------------------------------------------------------------------- superposition


@pytest.mark.filterwarnings("ignore:Optimal rotation is not uniquely")
@pytest.mark.parametrize("name", NAMES)
def test_kabsch_equals_scipy(name: str) -> None:
    """Weighted; linear HCN leaves the turn about its axis open, so there only the fit is compared."""
    target = positions(name)
    mobile = (target + 0.3 * normal(1, *target.shape)) @ orthogonal(1).T + 5.0
    weights = torch.rand(len(target), generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 0.1
    rotation, translation = kabsch(mobile, target, weights)

    def centred(x: Tensor) -> np.ndarray:
        return (x - (weights[:, None] * x).sum(0) / weights.sum()).numpy()

    expected, root_sum, *_ = Rotation.align_vectors(centred(target), centred(mobile), weights=weights.numpy())
    fit = mobile @ rotation.T + translation
    assert float((weights * (fit - target).square().sum(1)).sum()) == pytest.approx(root_sum**2, rel=1e-9)
    if name != "HCN":
        assert np.abs(rotation.numpy() - expected.as_matrix()).max() < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_mirror_image_is_never_reflected(name: str) -> None:
    target = positions(name)
    rotation, _ = kabsch(target @ orthogonal(4, improper=True).T, target)
    assert torch.linalg.det(rotation) == pytest.approx(1.0, abs=1e-12)
    assert (rotation @ rotation.T - torch.eye(3)).abs().max() < 1e-12


def test_chiral_mirror_images_do_not_superpose() -> None:
    """Planar molecules do; CHFClBr-like ones only if a reflection is allowed."""
    flat, handed = positions("C6H6"), positions("CH3CH2OH") + 0.3 * normal(3, 9, 3)
    mirror = orthogonal(5, improper=True).T
    assert rmsd(flat @ mirror, flat) < 1e-7
    assert rmsd(handed @ mirror, handed) > 0.1
    assert rmsd(handed @ mirror, handed, reflect=True) < 1e-7


def test_rmsd_against_search_over_rotations() -> None:
    """The least deviation over all proper rotations, found without Kabsch."""
    a, b = (x - x.mean(0) for x in (positions("CH3CH2OH") + normal(1, 9, 3), positions("CH3CH2OH") + normal(2, 9, 3)))

    def deviation(vector: np.ndarray) -> float:
        turned = Rotation.from_rotvec(vector).apply(a.numpy())
        return float(np.sqrt(((turned - b.numpy()) ** 2).sum(1).mean()))

    starts = Rotation.from_quat(normal(0, 12, 4).numpy()).as_rotvec()
    least = min(minimize(deviation, start, method="BFGS", options={"gtol": 1e-9}).fun for start in starts)
    assert float(rmsd(a, b)) == pytest.approx(least, abs=1e-6)


def test_chained_frames_do_not_tumble() -> None:
    rng = np.random.default_rng(0)
    path = rng.normal(size=(6, 3)) + 0.05 * np.cumsum(rng.normal(size=(5, 6, 3)), axis=0)
    tumbling = np.stack([x @ turn.as_matrix().T + 3 for x, turn in zip(path, Rotation.random(5, rng), strict=True)])
    for at in (0, 2, 4):
        still = chained(tumbling, at)
        assert np.array_equal(still[at], tumbling[at])
        assert np.abs(np.diff(still, axis=0)).max() < 0.5
        assert rmsds_of(still, tumbling) == pytest.approx(0, abs=1e-7)
    pairs = rmsds_of(path, path[0])
    assert pairs == pytest.approx([rmsd_of(x, path[0]) for x in tumbling], abs=1e-7) and pairs[1] > 0.01


def test_rmsd_of_a_batch_ignores_padding() -> None:
    a, b = normal(1, 3, 9, 3), normal(2, 3, 9, 3)
    mask = torch.arange(9) < torch.tensor([[9], [5], [3]])
    values = rmsd(torch.where(mask[..., None], a, 1e4), torch.where(mask[..., None], b, -1e4), mask)
    for k, n in enumerate((9, 5, 3)):
        assert values[k] == pytest.approx(float(rmsd(a[k, :n], b[k, :n])), abs=1e-9)


def test_each_fragment_gets_its_own_motion() -> None:
    """Fragments scattered one by one come home exactly; one motion for all of them cannot do it."""
    target = torch.cat([positions("CH3CH2OH"), positions("C6H6") + 4.0])[None]
    fragments = torch.tensor([[0] * 9 + [1] * 12])
    scattered = torch.cat(
        [target[0, :9] @ orthogonal(1).T + 7.0, target[0, 9:] @ orthogonal(2).T - torch.tensor([1.0, 9.0, 3.0])]
    )[None]
    assert (superpose_fragments(scattered, target, fragments) - target).abs().max() < 1e-9
    assert (superpose(scattered, target) - target).abs().max() > 1.0


# -------------------------------------------------------------------------------------------------------- embedding


@pytest.mark.parametrize("name", ["CH3CH2OH", "CH3COCl", "C2H6"])
def test_realisable_distances_are_recovered(name: str) -> None:
    true = positions(name)[None]
    mask = torch.ones(true.shape[:2], dtype=torch.bool)
    start = true + 0.2 * normal(0, *true.shape)
    target = torch.cdist(true, true)
    found = embed_distances(start, target, torch.ones_like(target), mask, iterations=3000)
    assert (torch.cdist(start, start) - target).abs().max() > 0.1
    assert (torch.cdist(found, found) - target).abs().max() < 1e-5
    assert rmsd(found, true) < 1e-5


def test_stress_never_grows() -> None:
    """A majorisation step cannot raise the stress, whatever the target (de Leeuw 1977)."""
    start = normal(0, 1, 12, 3) * 2
    target = normal(1, 1, 12, 12).abs() + 1
    target, weight = (target + target.mT) / 2, torch.ones(1, 12, 12, dtype=torch.float64)
    mask = torch.ones(1, 12, dtype=torch.bool)
    stress = []
    for iterations in (0, 1, 2, 5, 20, 100):
        x = embed_distances(start, target, weight, mask, iterations)
        stress.append(float(((torch.cdist(x, x) - target).square() * (1 - torch.eye(12))).sum()))
    assert all(after <= before + 1e-9 for before, after in zip(stress, stress[1:], strict=False))
    assert stress[-1] < 0.8 * stress[0]


def guess_of(reactions: Sequence[Reaction]) -> Tensor:
    return sqrt_distance_guess(*padded(reactions))[0]


def test_guess_does_not_depend_on_the_batch(val: list[Reaction]) -> None:
    together = guess_of(val[::3])
    for row, reaction in zip(together, val[::3], strict=True):
        alone = guess_of([reaction])[0]
        assert (row[: len(reaction)] - alone).abs().max() < 1e-8
        assert row[len(reaction) :].abs().sum() == 0


def test_guess_ignores_rigid_motion_and_fragment_placement(val: list[Reaction]) -> None:
    before, after = guess_of(val), guess_of([moved(r, k) for k, r in enumerate(val)])
    mask = padded(val)[2] >= 0
    assert rmsd(before, after, mask).max() <= 1e-6


def test_guess_of_the_reverse_reaction(val: list[Reaction]) -> None:
    before, after = guess_of(val), guess_of([r.reversed for r in val])
    mask = padded(val)[2] >= 0
    assert rmsd(before, after, mask).max() <= 1e-6


def test_end_points_come_back_superposed_fragment_by_fragment(val: list[Reaction]) -> None:
    """Inside a fragment nothing changes; every fragment lies on the guess as well as a rigid body can."""
    r, p, r_frag, p_frag = padded([moved(x, 9) for x in val])
    guess, reactant, product = sqrt_distance_guess(r, p, r_frag, p_frag)
    for side, placed, fragments in ((r, reactant, r_frag), (p, product, p_frag)):
        same = (fragments[:, :, None] == fragments[:, None, :]) & (fragments >= 0)[:, :, None]
        assert ((torch.cdist(side, side) - torch.cdist(placed, placed)) * same).abs().max() < 1e-5
        real = (fragments >= 0)[..., None]
        assert ((superpose_fragments(placed, guess, fragments) - placed) * real).abs().max() < 1e-6


def test_guess_beats_the_cartesian_midpoint(val: list[Reaction]) -> None:
    """On the true transition states of reactions with one product; the midpoint of the superposed ends is the rival."""
    chosen = [r for r in val if r.product_fragments.max() == 0 and r.ts is not None]
    r, p, r_frag, p_frag = padded(chosen)
    ts = padded([replace(x, reactant=x.ts) for x in chosen])[0]
    mask = r_frag >= 0
    near, far = place_together(r, p, r_frag, p_frag)
    guess, midpoint = (rmsd(x, ts, mask) for x in (guess_of(chosen), (near + far) / 2))
    assert guess.mean() < 0.9 * midpoint.mean()
    assert guess.median() < 0.6


def exchange(product_fragments: Sequence[int], moved_atoms: Sequence[int], shift: Sequence[float]) -> Reaction:
    """Water and chloromethane, some of whose atoms change partners: two fragments on either side."""
    reactant = torch.cat([positions("H2O"), positions("CH3Cl") + torch.tensor([0.0, 0.5, 4.0])]).numpy()
    product = reactant.copy()
    product[list(moved_atoms)] += shift
    return Reaction(
        numbers=np.array([8, 1, 1, 6, 17, 1, 1, 1]),
        reactant=reactant,
        product=product,
        reactant_fragments=np.array([0, 0, 0, 1, 1, 1, 1, 1]),
        product_fragments=np.array(product_fragments),
    )


METHYL_TRANSFER = exchange([0, 0, 0, 0, 1, 0, 0, 0], [3, 5, 6, 7], [0.0, 0.0, -2.0])
HYDROGEN_TRANSFER = exchange([0, 1, 0, 1, 1, 1, 1, 1], [1], [0.0, -0.7, 2.5])


@pytest.mark.parametrize(
    "reaction",
    [
        pytest.param(METHYL_TRANSFER, id="methyl"),
        pytest.param(HYDROGEN_TRANSFER, id="hydrogen"),
    ],
)
def test_several_fragments_on_both_sides(reaction: Reaction) -> None:
    """A + B -> C + D with all four scattered gives one guess, forwards and backwards."""
    guesses = guess_of([reaction, *(moved(reaction, k) for k in range(3)), reaction.reversed])
    assert guesses.isfinite().all()
    assert rmsd(guesses[0].expand_as(guesses), guesses).max() <= 1e-6
