"""One saddle search on a cheaper level towards a known transition state: the geometries and gradients it passes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from molgen.data.reactions import Reaction
from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import overlapping
from molgen.geometry.model_hessian import lindh_hessian
from molgen.potentials.base import Potential
from molgen.rng import generator
from molgen.saddle import refine
from molgen.saddle.modes import gradient, internal_basis
from molgen.saddle.optimize import Search
from molgen.tsgen import load_model
from molgen.tsgen.condition import prepare
from molgen.tsgen.generate import flow_samples
from molgen.workflows.reaction_tools import FAILURES, Potentials, cause, failure, stage

OVERLAPPING = "guess with overlapping atoms"  # an outcome, of no gradient
MAX_CALLS = 60
KEPT = (0, 1, 2, 3, 5, 8, 13, 21, 34)  # accepted steps whose geometry and gradient are kept
PLAIN_SHARE = 0.2  # of the searches of training reactions that start from the sqrt-distance guess
WORST = {"sigma": 0.25, "end_noise": 0.15, "dropout": 0.3}  # Angstrom, Angstrom, probability: of the worst guesses
NEAR = 3  # geometries scattered about the transition state
SCATTER = (0.03, 0.4)  # Angstrom RMSD of these, log-uniform
FLOOR = 0.5  # eV/Angstrom^2 added to every curvature of the model Hessian that shapes the scatter
STRAY = 0.5  # of the way to the sqrt-distance guess, at most, that they are moved besides


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What all searches of a run share; sent to every worker.

    Attributes:
        reactions: by their row in the source set, each with its transition state. splits: likewise.
        spoilt: splits whose searches begin from spoilt guesses; others begin from the guess a user would get.
        calculator, calculator_kwargs, weights: as of `molgen ts`.
        seed: row k draws from generator (seed, k).
    """

    reactions: Mapping[int, Reaction]
    splits: Mapping[int, str]
    spoilt: frozenset[str] = frozenset({"train"})
    calculator: str = "gfn2"
    calculator_kwargs: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "tsgen"
    seed: int = 0


class Searches:
    """Carries out the searches of a plan; `searches(row)` depends on the plan and the row alone.

    The weights have seen the training reactions, so their guesses for these are better than a user's. Searches of
    training reactions begin from guesses spoilt to the errors of unseen ones: noise on both ends and on the prior,
    dropout, every fifth without the network.
    """

    def __init__(self, plan: SearchPlan):
        torch.set_num_threads(1)
        self.plan = plan
        self._potentials = Potentials(plan.calculator, plan.calculator_kwargs)
        self._model = load_model(plan.weights)

    def __call__(self, row: int) -> dict[str, Any]:
        """The record of the search for row `row`: its outcome and the points, each {kind, x, g}."""
        begin = time.monotonic()
        plan = self.plan
        reaction, rng = plan.reactions[row], generator(plan.seed, row)
        record: dict[str, Any] = {"index": row, "split": plan.splits[row], "points": [], "near_lost": 0}
        calls: dict[str, int] = {}
        spoilt = plan.splits[row] in plan.spoilt

        def search(potential: Potential) -> None:
            start = self._start(reaction, rng, record, spoilt)
            record["outcome"] = self._search(potential, reaction, start, record)

        def near(potential: Potential) -> None:
            _scatter(potential, reaction, rng, record)

        jobs = {"search": search, **({"near": near} if spoilt else {})}
        try:
            potential = self._potentials(reaction.numbers, reaction.charge, reaction.spin)
            for name, job in jobs.items():
                try:
                    with stage(name, potential, calls):
                        job(potential)
                except FAILURES as error:  # what the search passed up to here is kept
                    record |= {"outcome": failure(error), "cause": cause(error)}
        except InputError as error:
            record |= {"outcome": failure(error), "cause": cause(error)}
        return {**record, "calls": calls, "seconds": round(time.monotonic() - begin, 3)}

    def _start(self, reaction: Reaction, rng: np.random.Generator, record: dict[str, Any], spoilt: bool) -> np.ndarray:
        """The guess (N, 3) to climb from."""
        how_bad = float(rng.random()) if spoilt else 0.0
        plain = spoilt and rng.random() < PLAIN_SHARE
        record["start"] = {"guess": "sqrt" if plain else "tsgen", "spoilt": round(how_bad, 3)}
        batch = prepare([replace(reaction, ts=None, level=self._model.level)], self._model.model.levels)

        def noise(width: float) -> torch.Tensor:
            return torch.from_numpy(rng.normal(size=batch.guess.shape)).float() * width * how_bad

        start_noise = noise(WORST["sigma"])
        if plain:
            return (batch.guess + start_noise)[0].double().numpy()
        ends = {side: getattr(batch, side) + noise(WORST["end_noise"]) for side in ("reactant", "product")}
        model = self._model.model.train(how_bad > 0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = WORST["dropout"] * how_bad
        torch.manual_seed(int(rng.integers(2**62)))  # of dropout
        return flow_samples(model, replace(batch, **ends), start_noise, self._model.steps)[0][0].double().numpy()

    def _search(self, potential: Potential, reaction: Reaction, start: np.ndarray, record: dict[str, Any]) -> str:
        """Climb from `start`, keeping points; the outcome."""
        if overlapping(reaction.numbers, start):
            return OVERLAPPING
        steps = 0

        def watch(search: Search) -> bool:
            nonlocal steps
            if steps in KEPT:
                _keep(record, "path" if steps else "guess", search.positions, search.gradient)
            steps += 1
            return False

        found = refine(
            potential, start, reactant=reaction.reactant, product=reaction.product, max_calls=MAX_CALLS, stop=watch
        )
        if not found.converged:
            return "not converged"
        _keep(record, "saddle", found.positions, np.zeros_like(found.positions))  # less than 0.02 eV/Angstrom
        return "converged"


def _scatter(potential: Potential, reaction: Reaction, rng: np.random.Generator, record: dict[str, Any]) -> None:
    """Keep geometries about the transition state, off along soft modes and towards the sqrt-distance guess."""
    assert reaction.ts is not None
    batch = prepare([reaction])
    ts = batch.true_ts[0].double().numpy()
    basis = internal_basis(ts)
    values, vectors = np.linalg.eigh(basis.T @ lindh_hessian(reaction.numbers, ts) @ basis)
    for _ in range(NEAR):
        stray = STRAY * float(rng.random()) ** 2 * (batch.guess[0].double().numpy() - ts)
        move = (basis @ vectors @ (rng.normal(size=len(values)) / np.sqrt(values + FLOOR))).reshape(ts.shape)
        size = np.exp(rng.uniform(*np.log(SCATTER)))
        x = ts + stray + move * size / np.sqrt((move**2).sum(1).mean())
        try:
            if not overlapping(reaction.numbers, x):
                _keep(record, "near", x, gradient(potential, x)[1])
                continue
        except CalculatorError as error:
            record.setdefault("cause", cause(error))
        record["near_lost"] += 1


def _keep(record: dict[str, Any], kind: str, x: np.ndarray, g: np.ndarray) -> None:
    record["points"].append({"kind": kind, "x": np.round(x, 4).tolist(), "g": np.round(g, 3).tolist()})
