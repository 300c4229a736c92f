"""Guesses of the shipped model: what must not matter does not, and every sample is its own.

Deviations are RMSD after proper superposition, Angstrom. The target is 1e-5: guesses are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from molgen.data.reactions import Reaction, load_npz
from molgen.geometry.align import rmsd
from molgen.io import load_reaction
from molgen.structures import formula
from molgen.tsgen import Generator, load_model
from molgen.tsgen.condition import prepare
from molgen.tsgen.ensemble import networks_of
from molgen.tsgen.generate import Guesses, flow_samples, generate

TOLERANCE = 3e-5


@pytest.fixture(scope="module")
def generator() -> Generator:
    return load_model()


@pytest.fixture(scope="module")
def reactions(root: Path) -> list[Reaction]:
    """Linear ends, fragments on either side, a planar molecule and a chiral transition state among them."""
    folder = root / "examples"
    sides = {
        "hcn": ("reactant.xyz", "product.xyz"),
        "formaldehyde": ("reactant.xyz", ["product.xyz", "product_2.xyz"]),
        "vinyl_alcohol": ("reactant.xyz", "product.xyz"),
        "cyclobutene": ("reactant.xyz", "product.xyz"),
        "claisen": ("reactant.xyz", "product.xyz"),
        "diels_alder": (["diene.xyz", "ethene.xyz"], "product.xyz"),
    }

    def files(name: str, side: str | list[str]) -> list[Path]:
        return [folder / name / part for part in ([side] if isinstance(side, str) else side)]

    return [load_reaction(files(name, r), files(name, p))[0] for name, (r, p) in sides.items()]


def first(generator: Generator, reactions: list[Reaction]) -> list[torch.Tensor]:
    """Sample 0 of each reaction, (N, 3)."""
    return [guess.positions[0] for guess in generate(generator.model, reactions, steps=generator.steps)]


@pytest.fixture(scope="module")
def reference(generator: Generator, reactions: list[Reaction]) -> list[torch.Tensor]:
    return first(generator, reactions)


def turned(reaction: Reaction, rng: np.random.Generator) -> Reaction:
    """Each side in a frame of its own."""

    def move(x: np.ndarray) -> np.ndarray:
        return Rotation.random(None, rng).apply(x) + rng.normal(0, 10, 3)

    return replace(reaction, reactant=move(reaction.reactant), product=move(reaction.product))


def scattered(reaction: Reaction, rng: np.random.Generator) -> Reaction:
    """Each fragment of each side turned and shifted by itself."""

    def move(x: np.ndarray, part: np.ndarray) -> np.ndarray:
        x = x.copy()
        for k in np.unique(part):
            x[part == k] = Rotation.random(None, rng).apply(x[part == k]) + rng.normal(0, 10, 3)
        return x

    return replace(
        reaction,
        reactant=move(reaction.reactant, reaction.reactant_fragments),
        product=move(reaction.product, reaction.product_fragments),
    )


def reordered(reaction: Reaction, order: np.ndarray) -> Reaction:
    """Atoms of both sides in another order."""
    return replace(
        reaction,
        numbers=reaction.numbers[order],
        reactant=reaction.reactant[order],
        product=reaction.product[order],
        product_fragments=reaction.product_fragments[order],
        reactant_fragments=reaction.reactant_fragments[order],
    )


def mirrored(reaction: Reaction) -> Reaction:
    mirror = np.array([1.0, 1.0, -1.0])
    return replace(reaction, reactant=reaction.reactant * mirror, product=reaction.product * mirror)


def check(found: list[torch.Tensor], expected: list[torch.Tensor], reactions: list[Reaction]) -> None:
    for a, b, reaction in zip(found, expected, reactions, strict=True):
        assert float(rmsd(a, b)) <= TOLERANCE, f"{formula(reaction.numbers)}, {reaction.name}"


def test_the_model_moves_the_guess(reactions: list[Reaction], reference: list[torch.Tensor]) -> None:
    """Otherwise the invariances below would be those of the interpolation alone."""
    batch = prepare(reactions)
    moved = [float(rmsd(x, batch.guess[i, : len(x)].double())) for i, x in enumerate(reference)]
    assert min(moved) > 100 * TOLERANCE, moved


def test_first_sample_is_deterministic(
    generator: Generator, reactions: list[Reaction], reference: list[torch.Tensor]
) -> None:
    again = generate(generator.model, reactions, steps=generator.steps, seed=77)
    for guess, x in zip(again, reference, strict=True):
        assert torch.equal(guess.positions[0], x)


@pytest.mark.parametrize("change", [turned, scattered])
def test_frames_and_placement_of_fragments_do_not_matter(
    change: Callable[[Reaction, np.random.Generator], Reaction],
    generator: Generator,
    reactions: list[Reaction],
    reference: list[torch.Tensor],
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        check(first(generator, [change(r, rng) for r in reactions]), reference, reactions)


def test_order_of_atoms_does_not_matter(
    generator: Generator, reactions: list[Reaction], reference: list[torch.Tensor]
) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        orders = [rng.permutation(len(r)) for r in reactions]
        found = first(generator, [reordered(r, o) for r, o in zip(reactions, orders, strict=True)])
        check(found, [x[o] for x, o in zip(reference, orders, strict=True)], reactions)


def test_direction_of_the_reaction_does_not_matter(
    generator: Generator, reactions: list[Reaction], reference: list[torch.Tensor]
) -> None:
    check(first(generator, [r.reversed for r in reactions]), reference, reactions)


def test_mirror_image_of_the_ends_gives_the_mirror_image(
    generator: Generator, reactions: list[Reaction], reference: list[torch.Tensor]
) -> None:
    mirror = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    check(first(generator, [mirrored(r) for r in reactions]), [x * mirror for x in reference], reactions)
    chiral = [float(rmsd(x, x * mirror)) for x in reference]
    assert max(chiral) > 0.1, "no guess here is chiral, so this test says nothing"


def test_real_reactions_are_invariant_too(generator: Generator, rdb7_path: Path) -> None:
    """Thirty of RDB7, at least ten of them with several products, all four changes at once."""
    rng = np.random.default_rng(2)
    every = load_npz(rdb7_path)
    split = [r for r in every if r.product_fragments.max() > 0]
    chosen = [every[k] for k in rng.choice(len(every), 20, replace=False)]
    chosen += [split[k] for k in rng.choice(len(split), 10, replace=False)]
    orders = [rng.permutation(len(r)) for r in chosen]
    changed = [reordered(scattered(r.reversed, rng), o) for r, o in zip(chosen, orders, strict=True)]
    reference = first(generator, chosen)
    check(first(generator, changed), [x[o] for x, o in zip(reference, orders, strict=True)], chosen)


def same(a: Guesses, b: Guesses) -> bool:
    """To float32 rounding, in the same frame: another amount of padding changes the order of sums."""
    return torch.allclose(a.positions, b.positions, atol=2e-5) and torch.allclose(a.deviation, b.deviation, atol=2e-5)


@pytest.fixture(scope="module")
def small(reactions: list[Reaction]) -> list[Reaction]:
    return [r for r in reactions if len(r) <= 10]


@pytest.fixture(scope="module")
def several(generator: Generator, small: list[Reaction]) -> list[Guesses]:
    return generate(generator.model, small, samples=5, seed=3)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_samples_do_not_depend_on_the_batch_size(
    batch_size: int, generator: Generator, small: list[Reaction], several: list[Guesses]
) -> None:
    found = generate(generator.model, small, samples=5, seed=3, batch_size=batch_size)
    assert all(same(a, b) for a, b in zip(found, several, strict=True))


def test_samples_do_not_depend_on_the_other_reactions(
    generator: Generator, reactions: list[Reaction], small: list[Reaction], several: list[Guesses]
) -> None:
    """The same place in the list, other neighbours: larger ones, fewer of them, none."""
    assert same(generate(generator.model, small[:1], samples=5, seed=3)[0], several[0])
    others = [reactions[-1], small[1], reactions[-1]]
    assert same(generate(generator.model, others, samples=5, seed=3)[1], several[1])


def test_more_samples_keep_the_first_ones(generator: Generator, small: list[Reaction], several: list[Guesses]) -> None:
    for a, b in zip(generate(generator.model, small, samples=2, seed=3), several, strict=True):
        assert torch.allclose(a.positions, b.positions[:2], atol=2e-5)


def test_samples_differ_from_each_other_and_between_seeds(
    generator: Generator, small: list[Reaction], several: list[Guesses]
) -> None:
    other = generate(generator.model, small, samples=5, seed=4)
    for guesses, elsewhere in zip(several, other, strict=True):
        x = guesses.positions
        assert all((x[i] - x[j]).abs().max() > 1e-3 for i in range(5) for j in range(i))
        assert (x[1:] - elsewhere.positions[1:]).abs().amax((1, 2)).min() > 1e-3


def test_shapes_and_predicted_deviations(reactions: list[Reaction], generator: Generator) -> None:
    for guesses, reaction in zip(generate(generator.model, reactions, samples=2), reactions, strict=True):
        n = len(reaction)
        assert guesses.positions.shape == (2, n, 3) and guesses.positions.dtype == torch.float64
        assert guesses.deviation.shape == (2, n) and (guesses.deviation > 0).all()
        assert torch.isfinite(guesses.positions).all()


@pytest.mark.parametrize("steps", [1, 3])
def test_prediction_is_the_mean_of_both_directions(steps: int, generator: Generator, small: list[Reaction]) -> None:
    """With one step, by hand; with several, the flow of the reversed reaction is the same flow."""
    batch, network = prepare(small), networks_of(generator.model)[0]
    noise = 0.1 * torch.randn(batch.guess.shape, generator=torch.Generator().manual_seed(0)) * batch.mask[..., None]
    x, deviation = flow_samples(network, batch, noise, steps)
    back, deviation_back = flow_samples(network, batch.swapped(), noise, steps)
    assert torch.allclose(x, back, atol=1e-6) and torch.allclose(deviation, deviation_back, atol=1e-6)
    assert (x[~batch.mask] == 0).all() and (deviation[~batch.mask] == 0).all()
    if steps == 1:
        zero = torch.zeros(len(batch))
        with torch.no_grad():
            there, variance = network(batch.guess + noise, zero, batch)
            reverse, variance_back = network(batch.guess + noise, zero, batch.swapped())
        assert torch.allclose(x, (there + reverse) / 2, atol=1e-6)
        expected = (1.5 * (variance.exp() + variance_back.exp())).sqrt() * batch.mask
        assert torch.allclose(deviation, expected, atol=1e-6)
