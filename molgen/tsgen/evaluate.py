"""Metrics of guessed transition states against true ones, with the guesses that need no learning beside them.

RMSD: proper rotation, atoms in the given order, 1/N, no clipping, one sample.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.geometry.align import rmsd, superpose_fragments
from molgen.geometry.bonds import bond_graph
from molgen.geometry.chirality import tetrahedral_quadruples, wrong_handedness
from molgen.tsgen.condition import ReactionBatch, prepare, refuse_unknown_elements
from molgen.tsgen.ensemble import TSEnsemble
from molgen.tsgen.generate import STEPS, generate
from molgen.tsgen.model import TSModel

ACHIRAL = 0.05  # Angstrom RMSD to the mirror image, below which an end is achiral


def deviations(guess: Tensor, reactions: Sequence[Reaction], batch: ReactionBatch) -> dict[str, np.ndarray]:
    """Per-reaction errors (B,) of guesses (B, N, 3), Angstrom: `rmsd`, `rmsd_reflect`, `dmae`, `wrong_handedness`,
    `wrong_determined`.

    `dmae` is the mean absolute error over the pair distances of a reaction. The handedness is judged as a whole and at
    the tetrahedral centres that reactant, transition state and product share. `wrong_determined` leaves out reactions
    whose reactant and product are both their own mirror images, atom by atom: there a transition state and its mirror
    image have one energy and one path each, and nothing tells which of them a data set happens to hold.
    """
    true, guess = batch.true_ts.double(), guess.double()
    pair = torch.triu(batch.mask[:, :, None] & batch.mask[:, None, :], diagonal=1)
    error = (torch.cdist(guess, guess) - torch.cdist(true, true)).abs() * pair
    wrong = []
    for i, reaction in enumerate(reactions):
        assert reaction.ts is not None
        z, a = reaction.numbers, len(reaction.numbers)
        bonds = bond_graph(z, reaction.reactant) & bond_graph(z, reaction.product) & bond_graph(z, reaction.ts)
        wrong.append(wrong_handedness(guess[i, :a].numpy(), reaction.ts, tetrahedral_quadruples(bonds)))
    return {
        "rmsd": rmsd(guess, true, batch.mask).numpy(),
        "rmsd_reflect": rmsd(guess, true, batch.mask, reflect=True).numpy(),
        "dmae": (error.sum((1, 2)) / pair.sum((1, 2))).numpy(),
        "wrong_handedness": np.array(wrong, dtype=float),
        "wrong_determined": np.array(wrong, dtype=float) * ~achiral_ends(batch),
    }


def achiral_ends(batch: ReactionBatch) -> np.ndarray:
    """(B,) whether reactant and product both equal their mirror images, atom by atom and fragment by fragment."""
    achiral = np.ones(len(batch), dtype=bool)
    for x, fragments in ((batch.reactant.double(), batch.r_frag), (batch.product.double(), batch.p_frag)):
        difference = superpose_fragments(-x, x, fragments) - x
        square = difference.square().sum(-1).sum(1) / batch.mask.sum(1)
        achiral &= (square.sqrt() < ACHIRAL).numpy()
    return achiral


def summary(errors: dict[str, np.ndarray]) -> dict[str, float]:
    """The table's figures from per-reaction errors."""
    return {
        "n": len(errors["rmsd"]),
        "rmsd_median": float(np.median(errors["rmsd"])),
        "rmsd_mean": float(errors["rmsd"].mean()),
        "rmsd_reflect_median": float(np.median(errors["rmsd_reflect"])),
        "dmae_mean": float(errors["dmae"].mean()),
        "wrong_handedness": float(errors["wrong_handedness"].mean()),
        "wrong_determined": float(errors["wrong_determined"].mean()),
    }


def evaluate(
    model: TSModel | TSEnsemble,
    reactions: Sequence[Reaction],
    *,
    steps: int = STEPS,
    batch_size: int = 32,
    seed: int = 0,
    source: str | os.PathLike = "",
) -> dict[str, Any]:
    """One sample a reaction against its true transition state.

    Args:
        source: where the reactions come from, for messages.

    Returns:
        `n, rmsd_median, rmsd_mean, rmsd_reflect_median, dmae_mean, wrong_handedness, wrong_determined,
        seconds_per_guess` (model time, preparation included), `baselines` (the same figures for the midpoint and the
        sqrt-distance guess) and `per_reaction` errors.

    Raises:
        InputError: no reaction, one without a true transition state, or an element the model does not know.
    """
    if not reactions:
        raise InputError("no reactions to evaluate on", where=f"{source}" or None, expected="one at least")
    for reaction in reactions:
        where = f"{source}{source and ', '}reaction {reaction.name}"
        if reaction.ts is None:
            raise InputError(
                "no transition state to compare with", where=where, expected="a known one in every reaction",
                remedy="remove it, or choose a --split without it",
            )  # fmt: skip
        refuse_unknown_elements(
            reaction.numbers.tolist(), model.elements, where=where, known_to="the weights",
            remedy="train on data that has them",
        )  # fmt: skip
    begin = time.perf_counter()
    guesses = generate(model, reactions, steps=steps, batch_size=batch_size, seed=seed)
    seconds = (time.perf_counter() - begin) / len(reactions)
    batch = prepare(reactions)
    predicted = torch.zeros_like(batch.true_ts)
    for i, guess in enumerate(guesses):
        predicted[i, : guess.positions.shape[1]] = guess.positions[0].float()
    errors = deviations(predicted, reactions, batch)
    midpoint = (batch.reactant + batch.product) / 2
    baselines = {
        "midpoint": summary(deviations(midpoint, reactions, batch)),
        "sqrt_distance": summary(deviations(batch.guess, reactions, batch)),
    }
    per_reaction = {"name": [r.name for r in reactions], **{k: v.tolist() for k, v in errors.items()}}
    return {**summary(errors), "seconds_per_guess": seconds, "baselines": baselines, "per_reaction": per_reaction}
