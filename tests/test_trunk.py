"""The shared trunk: symmetries, batching, padding, causal order, gradients, and equality with e3nn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from e3nn_trunk import E3nnTrunk
from equivariance import assert_equivariant, randomised, relative_error
from torch import Tensor

from molgen.nn.trunk import Trunk, TrunkCache, TrunkConfig

MOLECULES = ("CH3CH2OH", "HCN", "C3H4_C2v")  # 9, 3 and 7 atoms: padding of 0, 6 and 2
SMALL: dict[str, Any] = {
    "scalars": 16,
    "vectors": 8,
    "pair": 12,
    "heads": 4,
    "layers": 3,
    "radial": 8,
    "node_inputs": 5,
}
PLAIN = TrunkConfig(**SMALL, time=False)
FULL = TrunkConfig(**SMALL, odd=4, geometries=3, pair_inputs=3, vector_inputs=2, conditions=2)
EVEN = replace(FULL, odd=0)
CONFIGS = pytest.mark.parametrize("config", [PLAIN, EVEN, FULL], ids=["plain", "even", "odd"])


@dataclass
class Inputs:
    """Arguments of a trunk for three real molecules; `call` runs it and lists the outputs."""

    nodes: Tensor
    positions: list[Tensor]
    mask: Tensor
    vectors: Tensor | None = None
    geometry_masks: list[Tensor | None] | None = None
    pair_mask: Tensor | None = None
    pair_features: Tensor | None = None
    condition: Tensor | None = None
    time: Tensor | None = None

    def call(self, trunk: Any, **more: Any) -> list[Tensor]:
        s, v, odd = trunk(
            self.nodes,
            self.positions,
            self.mask,
            geometry_masks=self.geometry_masks,
            pair_mask=self.pair_mask,
            pair_features=self.pair_features,
            vector_features=self.vectors,
            condition=self.condition,
            time=self.time,
            **more,
        )
        return [s, v] if odd is None else [s, v, *(masked(x, self.mask) for x in odd)]

    def mapped(self, atoms, pairs, rows=lambda x: x) -> Inputs:
        """The same inputs with a function applied to what belongs to atoms, to pairs and to batch rows."""

        def each(function, values):
            return None if values is None else [None if x is None else function(x) for x in values]

        def maybe(function, x):
            return None if x is None else function(x)

        return Inputs(
            atoms(self.nodes),
            [atoms(x) for x in self.positions],
            atoms(self.mask),
            maybe(atoms, self.vectors),
            each(pairs, self.geometry_masks),
            maybe(pairs, self.pair_mask),
            maybe(pairs, self.pair_features),
            maybe(rows, self.condition),
            maybe(rows, self.time),
        )


def masked(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask.view(*mask.shape, *[1] * (x.ndim - 2)).to(x)


def kinds(config: TrunkConfig) -> tuple[str, ...]:
    return ("0e", "1o", "0o", "1e") if config.odd else ("0e", "1o")


def network(config: TrunkConfig, dtype: torch.dtype = torch.float64) -> Trunk:
    return randomised(Trunk(config).double()).to(dtype)


def inputs(config: TrunkConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
    """Real molecules, distorted by 0.15 A differently in each geometry (no planes, no lines: chirality can show)."""
    rng = np.random.default_rng(seed)
    sides = [molecule(name) for name in MOLECULES]
    b, n = len(sides), max(len(a) for a in sides)
    mask = torch.tensor([[i < len(a) for i in range(n)] for a in sides])

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return torch.from_numpy(spread * rng.standard_normal(shape)).to(dtype)

    positions = []
    for _ in range(config.geometries):
        x = np.zeros((b, n, 3))
        for k, atoms in enumerate(sides):
            x[k, : len(atoms)] = atoms.positions
        positions.append(masked(torch.from_numpy(x).to(dtype) + normal(b, n, 3, spread=0.15), mask))
    full = config.pair_inputs > 0
    fragment = torch.from_numpy(rng.integers(0, 2, (b, n)))
    return Inputs(
        nodes=masked(normal(b, n, config.node_inputs), mask),
        positions=positions,
        mask=mask,
        vectors=masked(normal(b, n, 3, config.vector_inputs), mask) if full else None,
        geometry_masks=[None, fragment[:, :, None] == fragment[:, None, :], None] if full else None,
        pair_features=normal(b, n, n, config.pair_inputs) if full else None,
        condition=normal(b, config.conditions) if full else None,
        time=torch.tensor([0.1, 0.5, 0.9], dtype=dtype) if config.time else None,
    )


def causal_order(config: TrunkConfig, seed: int = 0) -> tuple[Inputs, Tensor]:
    """Inputs with a random order of the atoms in which earlier atoms may send to later ones, and their ranks (B, N)."""
    given = inputs(config)
    rank = torch.argsort(torch.rand(given.mask.shape, generator=torch.Generator().manual_seed(seed)), dim=1)
    return replace(given, pair_mask=rank[:, :, None] > rank[:, None, :]), rank


@CONFIGS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_rotation_reflection_translation(config: TrunkConfig, dtype: torch.dtype, tolerance: float) -> None:
    trunk, given = network(config, dtype), inputs(config, dtype)
    vectors = [] if given.vectors is None else [given.vectors]

    def function(positions: list[Tensor], polar: list[Tensor]) -> list[Tensor]:
        return replace(given, positions=positions, vectors=polar[0] if polar else None).call(trunk)

    assert_equivariant(function, given.positions, kinds(config), tolerance, vectors=vectors)


def test_only_odd_outputs_see_handedness() -> None:
    """Without odd channels mirror images are alike; with them they differ, so that a task can ask for it."""
    given = inputs(FULL)
    assert given.vectors is not None
    mirrored = replace(given, positions=[-x for x in given.positions], vectors=-given.vectors)
    scalar, _, pseudo, axial = given.call(network(FULL))
    scalar_m, _, pseudo_m, axial_m = mirrored.call(network(FULL))
    assert relative_error(scalar_m, scalar) < 1e-10
    assert relative_error(pseudo_m, -pseudo) < 1e-10 and (pseudo_m - pseudo).abs().max() > 1e-2
    assert relative_error(axial_m, axial) < 1e-10


@CONFIGS
def test_permutation(config: TrunkConfig) -> None:
    trunk, given = network(config), inputs(config)
    order = torch.randperm(given.mask.shape[1], generator=torch.Generator().manual_seed(3))
    shuffled = given.mapped(lambda x: x[:, order], lambda x: x[:, order][:, :, order])
    for before, after in zip(given.call(trunk), shuffled.call(trunk), strict=True):
        assert relative_error(after, before[:, order]) <= 1e-10


@CONFIGS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_batched_equals_single(config: TrunkConfig, dtype: torch.dtype, tolerance: float) -> None:
    trunk, given = network(config, dtype), inputs(config, dtype)
    together = given.call(trunk)
    for k, n in enumerate(given.mask.sum(1).tolist()):
        one = given.mapped(
            lambda x, k=k, n=n: x[k : k + 1, :n],
            lambda x, k=k, n=n: x[k : k + 1, :n, :n],
            lambda x, k=k: x[k : k + 1],
        )
        for batched, single in zip(together, one.call(trunk), strict=True):
            assert relative_error(batched[k : k + 1, :n], single) <= tolerance


@CONFIGS
def test_padding_is_inert(config: TrunkConfig) -> None:
    """Any finite garbage in padded places changes nothing, comes out as zero and gets no gradient."""
    trunk, given = network(config), inputs(config)
    generator = torch.Generator().manual_seed(5)
    pad, pair_pad = ~given.mask, ~(given.mask[:, :, None] & given.mask[:, None, :])

    def spoil(x: Tensor, where: Tensor) -> Tensor:
        if x.dtype == torch.bool:
            return x | where  # geometry masks that claim padded pairs are fine
        noise = 1e3 * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        return torch.where(where.view(*where.shape, *[1] * (x.ndim - where.ndim)), noise, x)

    spoilt = given.mapped(lambda x: x if x.dtype == torch.bool else spoil(x, pad), lambda x: spoil(x, pair_pad))
    leaves = [spoilt.nodes, *spoilt.positions]
    for x in leaves:
        x.requires_grad_()
    outputs = spoilt.call(trunk)
    for clean, dirty in zip(given.call(trunk), outputs, strict=True):
        assert relative_error(dirty, clean) <= 1e-12
        assert dirty[pad].abs().max() == 0
    for gradient in torch.autograd.grad(torch.stack([x.square().sum() for x in outputs]).sum(), leaves):
        assert gradient.isfinite().all()
        assert gradient[pad].abs().max() == 0 < gradient[given.mask].abs().max()


@CONFIGS
def test_no_output_depends_on_a_later_atom(config: TrunkConfig) -> None:
    """Everything about atom j and its pairs changes: all outputs of earlier atoms stay the same to the bit."""
    trunk = network(config)
    given, rank = causal_order(config)
    before = given.call(trunk)
    rows = torch.arange(len(rank))
    for place in range(rank.shape[1]):
        j = (rank == place).int().argmax(1)
        touched = torch.zeros_like(given.mask)
        touched[rows, j] = True
        changed = given.mapped(
            lambda x, t=touched: x if x.dtype == torch.bool else x + masked(torch.ones_like(x), t),
            lambda x, t=touched: x if x.dtype == torch.bool else x + 0.7 * (t[:, :, None] | t[:, None, :])[..., None],
        )
        changed.pair_mask = given.pair_mask
        earlier = rank < place
        for old, new in zip(before, changed.call(trunk), strict=True):
            assert torch.equal(old[earlier], new[earlier])
            if place == 0:  # and it does reach the later ones
                assert not torch.allclose(old[given.mask & ~earlier], new[given.mask & ~earlier], atol=1e-3)


def test_own_inputs_in_a_causal_order() -> None:
    """What an atom may know of itself: its node features always, its position as soon as somebody sends to it.

    The first of the order sees no geometry at all. A model that generates atom j must not feed x_j to j itself.
    """
    trunk = network(PLAIN)
    given, rank = causal_order(PLAIN)
    positions = [x.requires_grad_() for x in given.positions]
    nodes = given.nodes.requires_grad_()
    scalar = replace(given, nodes=nodes, positions=positions).call(trunk)[0]
    first, last = int((rank[0] == 0).int().argmax()), int((rank[0] == rank.shape[1] - 1).int().argmax())
    to_nodes, to_x = torch.autograd.grad(scalar[0, first].square().sum(), [nodes, positions[0]], retain_graph=True)
    assert to_x.abs().max() == 0
    assert to_nodes[0, first].abs().max() > 0
    to_nodes[0, first] = 0
    assert to_nodes.abs().max() == 0
    (to_x,) = torch.autograd.grad(scalar[0, last].square().sum(), positions)
    assert to_x[0, last].abs().max() > 1e-4


@CONFIGS
def test_gradient_against_finite_differences(config: TrunkConfig) -> None:
    """Derivatives of a random sum of all outputs: 20 coordinates one by one, and four random directions."""
    trunk, given = network(config), inputs(config)
    generator = torch.Generator().manual_seed(7)

    def normal(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    weights = [normal(x) / x.numel() ** 0.5 for x in given.call(trunk)]

    def scalar(positions: Tensor) -> Tensor:
        out = replace(given, positions=list(positions)).call(trunk)
        return torch.stack([(w * x).sum() for w, x in zip(weights, out, strict=True)]).sum()

    positions = torch.stack(given.positions).requires_grad_()  # (G, B, N, 3)
    (gradient,) = torch.autograd.grad(scalar(positions), positions)
    assert gradient.abs().max() > 1e-2
    real = given.mask[None, :, :, None].expand_as(positions).flatten().nonzero()[:, 0]
    chosen = real[torch.randperm(len(real), generator=generator)[:20]]
    unit = torch.eye(positions.numel(), dtype=positions.dtype)[chosen].view(-1, *positions.shape)
    step = 1e-5
    with torch.no_grad():
        for direction in [*unit, *(normal(positions) for _ in range(4))]:
            numeric = (scalar(positions + step * direction) - scalar(positions - step * direction)) / (2 * step)
            assert abs((gradient * direction).sum() - numeric) <= 1e-6 * gradient.abs().max().clamp_min(1.0)


@CONFIGS
@pytest.mark.parametrize("causal", [False, True])
def test_equals_e3nn(config: TrunkConfig, causal: bool) -> None:
    """Every vector operation by o3.Linear and o3.TensorProduct, edge by edge, with the same weights; gradients too."""
    given = causal_order(config)[0] if causal else inputs(config)
    torch.set_default_dtype(torch.float64)  # e3nn takes the type of its constants from here
    try:
        trunk = network(config)
        reference = E3nnTrunk(trunk).double()
    finally:
        torch.set_default_dtype(torch.float32)
    positions = [x.requires_grad_() for x in given.positions]
    ours, theirs = given.call(trunk), given.call(reference)
    for kind, a, b in zip(kinds(config), ours, theirs, strict=True):
        assert b.abs().max() > 1e-2 and relative_error(a, b) <= 1e-6, kind
    sums = [torch.stack([x.square().mean() for x in out]).sum() for out in (ours, theirs)]
    for a, b in zip(*(torch.autograd.grad(x, positions) for x in sums), strict=True):
        assert relative_error(a, b) <= 1e-6


def test_irreps_name_the_features() -> None:
    from e3nn import o3

    assert o3.Irreps(FULL.irreps) == o3.Irreps("16x0e + 8x1o + 4x0o + 4x1e")
    assert o3.Irreps(EVEN.irreps) == o3.Irreps("16x0e + 8x1o")


def test_sizes_that_do_not_split_over_the_heads_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors \(6\) must be multiples of heads \(4\)"):
        Trunk(TrunkConfig(**{**SMALL, "vectors": 6}))


@CONFIGS
def test_the_cache_of_earlier_atoms_changes_nothing(config: TrunkConfig) -> None:
    """Atoms added one, two or three at a time give what all of them give at once."""
    trunk = network(config)
    given, rank = causal_order(config)
    batch, order = torch.arange(len(rank))[:, None], rank.argsort(1)

    def first(count: int, **more: Any) -> list[Tensor]:
        at = order[:, :count]
        pairs = (batch[:, :, None], at[:, :, None], at[:, None, :])
        return given.mapped(lambda x: x[batch, at], lambda x: x[pairs]).call(trunk, **more)

    cache, out = TrunkCache(), []
    with torch.no_grad():
        for count in (1, 3, 6, 7, 8, 9):
            out = first(count, cache=cache)
    for whole, grown in zip(first(9), out, strict=True):
        torch.testing.assert_close(grown, whole, rtol=1e-10, atol=1e-10)
