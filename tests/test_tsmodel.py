"""TS-GEN's network and loss: symmetries up to the reaction's own, padding, unknown elements, and that it learns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from conftest import ROOT
from equivariance import assert_equivariant, orthogonal, randomised, relative_error, rotate
from scipy.spatial.transform import Rotation
from torch import Tensor

from molgen.data.reactions import Reaction, load_npz
from molgen.geometry.align import rmsd
from molgen.rng import torch_generator
from molgen.tsgen.condition import ReactionBatch, prepare
from molgen.tsgen.model import TSModel
from molgen.tsgen.training import FlatNetwork, FlowSettings, flow_loss, make_model

ELEMENTS = [1, 6, 7, 8]
SIZES = {"scalars": 32, "vectors": 16, "pair": 24, "layers": 3, "heads": 4}


def built_in() -> list[Reaction]:
    """HCN -> HNC and H2CO -> H2 + CO, transition states by hand: for machines without the data set."""
    one = np.zeros(3, int)
    hcn = {"numbers": np.array([6, 7, 1]), "reactant_fragments": one, "product_fragments": one}
    cn = [[0.0, 0.0, 0.0], [1.16, 0.0, 0.0]]
    h2co = [[0.0, 0.0, 0.0], [1.20, 0.0, 0.0], [-0.59, 0.94, 0.0], [-0.59, -0.94, 0.0]]
    return [
        Reaction(
            reactant=np.array([*cn, [-1.07, 0.0, 0.0]]),
            product=np.array([*cn, [2.16, 0.0, 0.0]]),
            ts=np.array([*cn, [0.35, 1.13, 0.0]]),
            **hcn,
        ),
        Reaction(
            numbers=np.array([6, 8, 1, 1]),
            reactant=np.array(h2co),
            product=np.array([*h2co[:1], [1.13, 0.0, 0.0], [-9.0, 0.37, 0.0], [-9.0, -0.37, 0.0]]),
            ts=np.array([[0.0, 0.0, 0.0], [1.17, 0.0, 0.0], [-1.0, 0.5, 0.3], [-1.5, -0.6, 0.2]]),
            reactant_fragments=np.zeros(4, int),
            product_fragments=np.array([0, 0, 1, 1]),
        ),
    ] * 4


@pytest.fixture(scope="module")
def reactions() -> list[Reaction]:
    """Eight reactions of RDB7's validation split, three with several products; else the built-in ones."""
    path = Path(os.environ.get("MOLGEN_SHARED", ROOT.parent / "shared")) / "data" / "rdb7_ts.npz"
    if not path.is_file():
        return built_in()
    every = load_npz(path, "val")
    return [r for r in every if r.product_fragments.max() == 0][:5] + [r for r in every if r.product_fragments.max()][
        :3
    ]


@pytest.fixture(scope="module")
def batch(reactions: list[Reaction]) -> ReactionBatch:
    return prepare(reactions)


@pytest.fixture(scope="module")
def model() -> TSModel:
    return randomised(TSModel(ELEMENTS, **SIZES).double())


def precise(batch: ReactionBatch) -> ReactionBatch:
    """The same numbers as float64."""
    return replace(
        batch, guess=batch.guess.double(), reactant=batch.reactant.double(), product=batch.product.double(), ts=None
    )


def noisy(batch: ReactionBatch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A point x_t (B, N, 3) near the guess and times (B,), float64."""
    noise = torch.randn(batch.guess.shape, generator=torch_generator(seed), dtype=torch.float64)
    return (batch.guess.double() + 0.1 * noise) * batch.mask[..., None], torch.linspace(0, 0.9, len(batch)).double()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_equivariance(batch: ReactionBatch, dtype: torch.dtype, tolerance: float) -> None:
    """End point turns, mirrors and moves with x_t, reactant and product; its variance does not."""
    net = randomised(TSModel(ELEMENTS, **SIZES).double()).to(dtype)
    given, mask = precise(batch), batch.mask
    x_t, t = noisy(batch)

    def function(positions: list[Tensor], _: list[Tensor]) -> list[Tensor]:
        x, r, p = positions
        end, log_variance = net(x, t.to(dtype), replace(given, reactant=r, product=p))
        centre = x[:, :1]  # padded atoms have no place of their own
        return [torch.where(mask[..., None], end, centre), log_variance * mask]

    sides = [x.to(dtype) for x in (x_t, given.reactant, given.product)]
    assert_equivariant(function, sides, ("x", "0e"), tolerance, move_each=False)


def test_mirror_image_in_mirror_image_out_to_the_bit(model: TSModel, batch: ReactionBatch) -> None:
    """The point reflection changes only signs, which floating point keeps exactly: no handedness can creep in."""
    given, (x_t, t) = precise(batch), noisy(batch)
    end, log_variance = model(x_t, t, given)
    mirrored = replace(given, reactant=-given.reactant, product=-given.product)
    mirrored_end, mirrored_variance = model(-x_t, t, mirrored)
    assert torch.equal(mirrored_end, -end)
    assert torch.equal(mirrored_variance, log_variance)
    assert (end - x_t).abs().max() > 0.1


def test_mirrored_reaction_through_the_whole_input_layer(model: TSModel, reactions: list[Reaction]) -> None:
    """Reflected reactant and product files give the reflected transition state, never the unreflected one."""
    mirror = np.diag([1.0, 1.0, -1.0])
    images = [replace(r, reactant=r.reactant @ mirror, product=r.product @ mirror, ts=None) for r in reactions]
    plain, mirrored = (end_point(model, part) for part in (reactions, images))
    mask = prepare(reactions).mask
    assert rmsd(-plain, mirrored, mask).max() <= 1e-4


def end_point(model: TSModel, reactions: Sequence[Reaction]) -> Tensor:
    """One step from the noiseless guess, float64 (B, N, 3)."""
    batch = precise(prepare(reactions))
    with torch.no_grad():
        return model(batch.guess, batch.guess.new_zeros(len(batch)), batch)[0]


def test_atom_permutation(model: TSModel, reactions: list[Reaction]) -> None:
    """Another atom order in the input files, the same transition state: guess, bonds and network together."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(r)) for r in reactions]
    per_atom = ("numbers", "reactant", "product", "reactant_fragments", "product_fragments", "ts")
    shuffled = [replace(r, **{k: getattr(r, k)[o] for k in per_atom}) for r, o in zip(reactions, orders, strict=True)]
    before, after = end_point(model, reactions), end_point(model, shuffled)
    for k, order in enumerate(orders):
        assert rmsd(after[k, : len(order)], before[k, order]) <= 1e-4


def test_fragment_placement_and_orientation(model: TSModel, reactions: list[Reaction]) -> None:
    """Every fragment of either side turned and moved by itself: the predicted transition state stays."""
    rng = np.random.default_rng(1)

    def scatter(x: np.ndarray, fragments: np.ndarray) -> np.ndarray:
        out = np.array(x)
        for k in np.unique(fragments):
            out[fragments == k] = Rotation.from_quat(rng.normal(size=4)).apply(out[fragments == k]) + rng.normal(
                0, 8, 3
            )
        return out

    moved = [
        replace(
            r,
            reactant=scatter(r.reactant, r.reactant_fragments),
            product=scatter(r.product, r.product_fragments),
        )
        for r in reactions
    ]
    before, after = end_point(model, reactions), end_point(model, moved)
    assert rmsd(before, after, prepare(reactions).mask).max() <= 1e-4


def test_reaction_and_its_reverse_see_each_other_swapped(batch: ReactionBatch, reactions: list[Reaction]) -> None:
    """`swapped` equals preparing the reverse reactions, up to a rigid motion of each."""
    reverse = prepare([r.reversed for r in reactions])
    swapped = batch.swapped()
    assert torch.equal(swapped.hops, reverse.hops) and torch.equal(swapped.p_frag, reverse.p_frag)
    for name in ("reactant", "product", "guess"):
        assert rmsd(getattr(swapped, name).double(), getattr(reverse, name).double(), batch.mask).max() <= 1e-4
    one = torch.arange(len(batch)) == 1
    assert torch.equal(batch.swapped(one).reactant[1], batch.product[1])
    assert torch.equal(batch.swapped(one).reactant[0], batch.reactant[0])


def test_padding_is_inert(model: TSModel, batch: ReactionBatch) -> None:
    """Six more rows of garbage coordinates a molecule; alone or in company: the same end points."""
    given, (x_t, t) = precise(batch), noisy(batch)
    end, log_variance = model(x_t, t, given)
    extra, (b, n) = 6, batch.numbers.shape

    def widen(x: Tensor, value: float) -> Tensor:
        out = torch.full((b, n + extra, *x.shape[2:]), value, dtype=x.dtype)
        out[:, :n] = x
        return out

    spoilt = {k: widen(getattr(given, k), 50.0) for k in ("guess", "reactant", "product")}
    wide = ReactionBatch(
        numbers=widen(given.numbers, 0),
        r_frag=widen(given.r_frag, -1),
        p_frag=widen(given.p_frag, -1),
        hops=torch.full((b, n + extra, n + extra, 2), 5, dtype=torch.int8),
        **spoilt,
    )
    wide.hops[:, :n, :n] = given.hops
    wide_end, wide_variance = model(widen(x_t, -70.0), t, wide)
    assert relative_error(wide_end[:, :n], end) < 1e-11
    assert relative_error(wide_variance[:, :n] * batch.mask, log_variance * batch.mask) < 1e-11
    assert wide_end[:, n:].abs().max() == 0
    for k in range(b):
        alone = given.select(torch.tensor([k]))
        m = alone.numbers.shape[1]
        assert relative_error(model(x_t[k : k + 1, :m], t[k : k + 1], alone)[0], end[k : k + 1, :m]) < 1e-11


def test_unknown_elements_enter_as_no_element(model: TSModel, batch: ReactionBatch) -> None:
    """Finite, and the same for any two unknown elements of one radius: the lookup gives them a row of zeros."""
    given, (x_t, t) = precise(batch), noisy(batch)
    lookup = model.get_buffer("lookup").tolist()
    assert [lookup[z] for z in ELEMENTS] == [0, 1, 2, 3] and set(lookup) == {0, 1, 2, 3, 4}
    ends = {}
    assert covalent_radii[24] == covalent_radii[25]
    for z in (8, 24, 25):
        numbers = torch.where(given.numbers == 8, z, given.numbers)
        with torch.no_grad():
            ends[z] = model(x_t, t, replace(given, numbers=numbers))[0]
        assert ends[z].isfinite().all()
    assert (ends[24] - ends[8]).abs().max() > 1e-3
    assert torch.equal(ends[24], ends[25])


def test_end_point_depends_on_every_input(model: TSModel, batch: ReactionBatch) -> None:
    """x_t, time, reactant, product and bonds all matter (a forgotten input would pass every symmetry test)."""
    given, (x_t, t) = precise(batch), noisy(batch)
    shift = 0.1 * torch.randn(x_t.shape, generator=torch_generator(4), dtype=torch.float64) * batch.mask[..., None]
    end = model(x_t, t, given)[0] - x_t
    others = {
        "x_t": model(x_t + shift, t, given)[0] - x_t - shift,
        "time": model(x_t, t + 0.05, given)[0] - x_t,
        "reactant": model(x_t, t, replace(given, reactant=given.reactant + shift))[0] - x_t,
        "product": model(x_t, t, replace(given, product=given.product + shift))[0] - x_t,
        "hops": model(x_t, t, replace(given, hops=given.hops.flip(-1)))[0] - x_t,
    }
    for name, other in others.items():
        assert (other - end).abs().max() > 1e-3, name


def test_flow_loss_is_finite_and_falls(batch: ReactionBatch) -> None:
    """Thirty steps on eight reactions: the loss at fixed noise falls by a fifth and more; all gradients are finite."""
    torch.manual_seed(0)
    net, flow = TSModel(ELEMENTS, **SIZES), FlowSettings()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)

    def fixed() -> float:
        with torch.no_grad():
            return sum(float(flow_loss([net], batch, torch_generator(9, k), flow)["loss"]) for k in range(4)) / 4

    before = fixed()
    for step in range(30):
        losses = flow_loss([net], batch, torch_generator(0, step), flow)
        assert all(value.isfinite() for value in losses.values())
        optimizer.zero_grad()
        losses["loss"].backward()
        if step == 0:
            silent = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
            assert not silent
        optimizer.step()
    assert fixed() < 0.8 * before


def test_flow_loss_follows_its_generator(batch: ReactionBatch) -> None:
    net = randomised(TSModel(ELEMENTS, **SIZES))
    values = [float(flow_loss([net], batch, torch_generator(k), FlowSettings())["loss"].detach()) for k in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_loss_of_the_right_answer_is_the_noise_of_the_path(batch: ReactionBatch) -> None:
    """A model that answers with the transition state, turned: no deviation, no distance error."""
    truth, turn = batch.ts, orthogonal(3).float()
    assert truth is not None

    class Oracle(torch.nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, batch: ReactionBatch) -> tuple[Tensor, Tensor]:
            return rotate(truth, turn) + 3.0, x_t.new_zeros(x_t.shape[:2])

    losses = flow_loss([Oracle()], batch, torch_generator(0), FlowSettings())
    assert losses["rmsd"] < 2e-3 and losses["pair"] < 1e-4 and losses["nll"] < 1e-4


def test_batch_fields_survive_select(batch: ReactionBatch) -> None:
    """Rows are cropped to their largest molecule, and nothing real is lost."""
    index = torch.argsort(batch.mask.sum(1))[:2]
    part = batch.select(index)
    n = int(batch.mask[index].sum(1).max())
    assert part.numbers.shape == (2, n) and part.hops.shape == (2, n, n, 2)
    for f in fields(ReactionBatch):
        x = getattr(part, f.name)
        if x is not None:
            assert torch.equal(
                x,
                getattr(batch, f.name)[index][:, :n, :n] if f.name == "hops" else getattr(batch, f.name)[index][:, :n],
            )


def test_levels_are_told_apart(reactions: list[Reaction]) -> None:
    """Each level has its own end point; a reaction of no level, or of another, is one of the first."""
    levels = ["wB97X-D3", "GFN2-xTB"]
    model = randomised(TSModel(ELEMENTS, levels=levels, **SIZES), scale=0.3).eval()
    assert TSModel(**model.config).levels == tuple(levels)

    def end(level: str) -> Tensor:
        batch = prepare([replace(r, level=level) for r in reactions], model.levels)
        assert batch.level is not None and len(batch.select(torch.tensor([1, 2])).level) == 2  # type: ignore[arg-type]
        with torch.no_grad():
            return model(batch.guess, torch.zeros(len(batch)), batch)[0]

    first = end(levels[0])
    assert torch.equal(end(""), first) and torch.equal(end("PM6"), first)
    assert (end(levels[1]) - first).abs().max() > 1e-3
    batch = prepare(reactions)
    assert batch.level is None and torch.equal(model(batch.guess, torch.zeros(len(batch)), batch)[0], first)


def test_the_level_that_validates_comes_first(reactions: list[Reaction]) -> None:
    cheap = [replace(r, level="GFN2-xTB") for r in reactions]
    dear = [replace(r, level="CCSD(T)") for r in reactions]
    assert make_model([*cheap, *dear], dear).levels == ("CCSD(T)", "GFN2-xTB")
    assert make_model(cheap, cheap).levels == ()


def test_network_of_tensors_is_the_network_and_never_waits_for_the_gpu() -> None:
    """A CUDA graph may not ask for a value; on torch's meta device nothing has one to give."""
    model, batch = TSModel(ELEMENTS, levels=["a", "b"], **SIZES).eval(), prepare(built_in()[:2], ["a", "b"])
    batch.level = torch.tensor([1, 0])
    inputs = FlatNetwork.inputs(batch.guess, torch.tensor([0.2, 0.7]), batch)
    for found, wanted in zip(FlatNetwork(model)(*inputs), model(*inputs[:2], batch), strict=True):
        assert torch.equal(found, wanted)
    there = FlatNetwork(model.to("meta").train())(*(x.to("meta") for x in inputs))
    torch.stack([value.sum() for value in there]).sum().backward()


def test_batches_of_a_multiple_of_atoms() -> None:
    batch = prepare(built_in()[:2])
    assert batch.select(torch.tensor([0])).numbers.shape == (1, 3)
    assert batch.select(torch.tensor([0]), 2).numbers.shape == (1, 4)
    assert batch.select(torch.tensor([0, 1]), 8).numbers.shape == (2, 4)  # there are no more
