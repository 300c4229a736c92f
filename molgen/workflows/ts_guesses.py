"""Guesses of a transition state, from the model and without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from molgen.data.reactions import Pair, Reaction
from molgen.geometry.align import rmsd_of, superpose
from molgen.geometry.bonds import bond_graph, bonding_differences
from molgen.geometry.shape import shape_distance
from molgen.potentials.base import Potential
from molgen.rng import generator
from molgen.saddle.judge import SHAPE
from molgen.saddle.restrain import bisected, half_made, relaxation_calls
from molgen.tsgen import Generator
from molgen.tsgen.condition import prepare
from molgen.tsgen.generate import SIGMA, generate
from molgen.tsgen.rank import guess_features

STIR = 0.03  # Angstrom, noise that takes a side off the symmetry it may have before it is relaxed to a guess
RELAXED = {"restrained": half_made, "bisected": bisected}  # raw guesses, by their source


class Guess(NamedTuple):
    """A geometry to refine.

    Attributes:
        positions: (N, 3) Angstrom, float64.
        source: "TS-GEN", "sqrt-distance", "restrained", "bisected" or "rotamer". sample: index among the guesses.
        ends: (reactant, product), the conformers that it lies between.
        features: what its confidence follows from, see :func:`molgen.tsgen.rank.guess_features`; None without a model.
        raw: still to be :meth:`relaxed`.
    """

    positions: np.ndarray
    source: str
    sample: int
    ends: Pair
    features: Mapping[str, float] | None = None
    raw: bool = False

    def relaxed(self, potential: Potential, reaction: Reaction, max_calls: int) -> Guess:
        """A raw guess relaxed with the bonds that change held, see :mod:`molgen.saddle.restrain`.

        Raises:
            CalculatorError: the calculator failed.
        """
        calls = min(max_calls, relaxation_calls(len(reaction)))
        x = RELAXED[self.source](potential, self.positions, reaction.reactant, reaction.product, calls)
        return self._replace(positions=x, raw=False)


def sqrt_guess(reaction: Reaction, ends: Pair | None = None) -> np.ndarray:
    """(N, 3) Angstrom, the sqrt-distance guess between two conformers, by default those the reaction has first."""
    r, p = ends or reaction.pairs[0]
    return prepare([replace(reaction, reactant=r, product=p)]).guess[0].double().numpy()


def tsgen_guesses(model: Generator, reaction: Reaction, samples: int, steps: int, seed: int) -> list[Guess]:
    """Draws of the model, between all conformers in turn; the first between each is the deterministic one.

    A fragment that takes no part keeps its shape, which the model has not learned.
    """
    pairs = reaction.pairs[:samples]
    between = [replace(reaction, reactant=r, product=p, level=model.level) for r, p in pairs]
    drawn = generate(model.model, between, samples=math.ceil(samples / len(pairs)), steps=steps, seed=seed)
    guesses = []
    for k in range(samples):
        turn, of = divmod(k, len(pairs))
        x = _with_spectators(reaction, drawn[of].positions[turn].numpy())
        features = guess_features(drawn[of].deviation[turn].numpy(), rmsd_of(x, sqrt_guess(reaction, pairs[of])))
        guesses.append(Guess(x, "TS-GEN", k, pairs[of], features))
    return guesses


def physics_guesses(reaction: Reaction, samples: int, seed: int, held: bool, first: int = 0) -> list[Guess]:
    """The sqrt-distance guess of all conformers; that of the first, and each side that is one piece, to be relaxed with
    the bonds that change held half made, then where one side becomes the other; noisy copies of the first, so that
    there are `samples` of it.

    Args:
        held: whether anything may be relaxed. first: index of the first among all guesses.
    """
    middle, ends = sqrt_guess(reaction), reaction.pairs[0]
    found = [(sqrt_guess(reaction, pair), "sqrt-distance", pair, False) for pair in reaction.pairs]
    sides = [(reaction.product, reaction.product_fragments), (reaction.reactant, reaction.reactant_fragments)]
    starts = [*(x for x, fragments in sides if not fragments.any()), middle] if held else []
    for source in RELAXED:
        for at, start in enumerate(starts):
            found.append((start + STIR * generator(seed, at, 1).normal(size=start.shape), source, ends, True))
    for k in range(1, samples):
        found.append((middle + SIGMA * generator(seed, k).normal(size=middle.shape), "sqrt-distance", ends, False))
    return [Guess(x, source, first + k, pair, raw=raw) for k, (x, source, pair, raw) in enumerate(found)]


def _with_spectators(reaction: Reaction, guess: np.ndarray) -> np.ndarray:
    """The guess with fragments that are the same on both sides as the reactant has them, each in its place.

    Where no bond changes at all, one that does not keep its shape is what reacts.
    """
    x, r, p = guess.copy(), reaction.reactant_fragments, reaction.product_fragments
    for atoms in (np.flatnonzero(r == k) for k in range(int(r.max()) + 1)):
        numbers = reaction.numbers[atoms]
        before, after = reaction.reactant[atoms], reaction.product[atoms]
        if len(atoms) == len(r) or not np.array_equal(atoms, np.flatnonzero(p == p[atoms[0]])):
            continue
        if bonding_differences(numbers, before, after):
            continue
        bonds = bond_graph(numbers, before)
        if reaction.bonds_change or shape_distance(numbers, bonds, before, after) < SHAPE:
            shape, place = (torch.from_numpy(np.asarray(y, dtype=float)) for y in (before, guess[atoms]))
            x[atoms] = superpose(shape, place).numpy()
    return x
