"""One attempt at a new reaction: propose a step, build a guess, climb to a saddle, and see what lies on both sides."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from molgen.data.elementary import applied, product_geometry, propose_step, step_kind, step_text
from molgen.data.exclusion import reaction_key, reaction_keys
from molgen.data.reactions import Reaction
from molgen.data.sources import SourceMolecule
from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import BondChanges, bond_graph, bonding_differences, compare_bonds, fragments, overlapping
from molgen.potentials.base import Potential
from molgen.rng import generator
from molgen.saddle import normal_modes, refine
from molgen.saddle.descent import kick, relax
from molgen.saddle.judge import LEAST_BARRIER
from molgen.saddle.modes import Modes, gradient
from molgen.saddle.optimize import Search
from molgen.tsgen import load_model
from molgen.tsgen.condition import prepare
from molgen.tsgen.generate import generate
from molgen.workflows.reaction_tools import (
    FAILURES,
    LOOSE_FMAX,
    Potentials,
    cause,
    centred,
    failure,
    relaxed_end,
    stage,
)

GuessKind = Literal["tsgen", "sqrt"]
VERIFIED = ("intended", "half", "unintended")
BARRIER = 5.0  # eV over the source, at most; RDB7's highest percentile lies at 5.9
TOO_HIGH = 4.5  # eV over the source, for a product
GUESS_LIMIT = 12.0  # eV over the source, of a guess; its worst strain is gone within a few steps
PATIENCE = 12  # gradient calls after which a search must be below HOPELESS
HOPELESS = 6.5  # eV over the source
PRODUCT_FMAX, PRODUCT_CALLS = 0.15, 60
SADDLE_FMAX, SADDLE_CALLS = 0.02, 90


@dataclass(frozen=True, eq=False)
class Plan:
    """What all attempts of a run share; sent to every worker.

    Attributes:
        molecules: sources. excluded: keys of reactions never to make.
        calculator, calculator_kwargs: as of `molgen ts`. guesses: kinds, drawn at random. weights: of TS-GEN.
        seed: attempt k draws from generator (seed, k).
    """

    molecules: Sequence[SourceMolecule]
    excluded: frozenset[str]
    calculator: str = "gfn2"
    calculator_kwargs: Mapping[str, Any] = field(default_factory=dict)
    guesses: Sequence[GuessKind] = ("tsgen", "sqrt")
    weights: str = "tsgen"
    seed: int = 0


class Rejected(Exception):
    """An attempt ends here; the outcome in words."""


class Attempts:
    """Carries out attempts of a plan; `attempts(k)` depends on the plan and k alone."""

    def __init__(self, plan: Plan):
        torch.set_num_threads(1)
        self.plan = plan
        self._potentials = Potentials(plan.calculator, plan.calculator_kwargs)
        self._model = load_model(plan.weights) if "tsgen" in plan.guesses else None

    def __call__(self, index: int) -> dict[str, Any]:
        """Attempt `index`: its outcome, costs and provenance; with a reaction's geometries where one was verified.

        `step` and `kind` are of the proposal; r and p of the record may differ by another.
        """
        begin = time.monotonic()
        record: dict[str, Any] = {"attempt": index}
        calls: dict[str, int] = {}
        try:
            record |= self._attempt(index, record, calls)
        except Rejected as outcome:
            record["outcome"] = str(outcome)
        except FAILURES as error:
            record |= {"outcome": failure(error), "cause": cause(error)}
        return {**record, "calls": calls, "seconds": round(time.monotonic() - begin, 3)}

    def _attempt(self, index: int, record: dict[str, Any], calls: dict[str, int]) -> dict[str, Any]:
        plan, rng = self.plan, generator(self.plan.seed, index)
        lap, place = divmod(index, len(plan.molecules))
        molecule = plan.molecules[int(generator(plan.seed, 0, lap).permutation(len(plan.molecules))[place])]
        record["source"] = molecule.name
        z, x = molecule.numbers, molecule.positions
        bonds = bond_graph(z, x)
        step = propose_step(z, bonds, x, rng)
        if step is None:
            raise Rejected("no step found")
        guess_kind = self._guess_for(z, plan.guesses[int(rng.integers(len(plan.guesses)))])
        record |= {"step": step_text(z, step), "kind": step_kind(z, bonds, step), "guess": guess_kind}
        after = applied(bonds, step)
        key = reaction_key(z, bonds, after, molecule.charge)
        if len(set(key.split())) == 1:
            raise Rejected("step gives the same molecule")
        if key in plan.excluded:
            raise Rejected("excluded")
        try:
            potential = self._potentials(molecule.numbers, molecule.charge, molecule.spin)
        except InputError as error:  # what the calculator says once it knows the molecule
            raise CalculatorError(error.what) from error
        with stage("product", potential, calls):
            bottom = gradient(potential, x)[0]
            product = self._product(potential, molecule, product_geometry(z, bonds, x, step), bottom)
        reaction = Reaction(
            z, x, product, fragments(bond_graph(z, product)), fragments(bonds), molecule.charge, molecule.spin
        )
        with stage("saddle", potential, calls):
            ts, energy = self._saddle(potential, reaction, guess_kind, bottom)
        with stage("modes", potential, calls):
            modes = normal_modes(potential, ts)
            if modes.imaginary != 1:
                raise Rejected("not a first-order saddle")
        with stage("descents", potential, calls):
            ends = [_descend(potential, ts, modes, sign) for sign in (1, -1)]
        return self._judged(reaction, step, ts, energy, float(modes.frequencies_cm[0]), ends)

    def _guess_for(self, numbers: np.ndarray, drawn: GuessKind) -> GuessKind:
        """The guess as drawn, or "sqrt" where the weights do not know an element."""
        known = self._model is None or set(numbers.tolist()) <= set(self._model.model.elements)
        return drawn if known else "sqrt"

    def _product(self, potential: Potential, source: SourceMolecule, start: np.ndarray, bottom: float) -> np.ndarray:
        """The relaxed product; whatever it became, if it is another molecule than the source."""

        def back(search: Search) -> bool:
            return not len(search.path) % 5 and not bonding_differences(
                source.numbers, search.positions, source.positions
            )

        found = relax(potential, start, fmax=PRODUCT_FMAX, max_calls=PRODUCT_CALLS, stop=back)
        if not bonding_differences(source.numbers, found.positions, source.positions):
            raise Rejected("product falls back")
        if found.energy - bottom > TOO_HIGH:
            raise Rejected("product too high")
        return found.positions

    def _saddle(self, potential: Potential, reaction: Reaction, kind: str, bottom: float) -> tuple[np.ndarray, float]:
        """Geometry and energy of a stationary point with negative curvature."""
        if kind == "tsgen":
            assert self._model is not None
            asked = replace(reaction, level=self._model.level)
            guess = generate(self._model.model, [asked], steps=self._model.steps)[0].positions[0].numpy()
        else:
            guess = prepare([reaction]).guess[0].double().numpy()
        if overlapping(reaction.numbers, guess):
            raise Rejected("guess with overlapping atoms")
        calls = potential.calls

        def hopeless(search: Search) -> bool:
            limit = HOPELESS if potential.calls - calls > PATIENCE else GUESS_LIMIT
            return search.energy - bottom > limit

        found = refine(
            potential, guess, reactant=reaction.reactant, product=reaction.product,
            fmax=SADDLE_FMAX, max_calls=SADDLE_CALLS, stop=hopeless,
        )  # fmt: skip
        if not found.converged:
            spent = found.gradient_calls >= SADDLE_CALLS
            raise Rejected("search did not converge" if spent else "search too high")
        if found.energy - bottom > BARRIER:
            raise Rejected("barrier too high")
        return found.positions, found.energy

    def _judged(
        self,
        reaction: Reaction,
        step: BondChanges,
        ts: np.ndarray,
        energy: float,
        frequency: float,
        ends: list[Search],
    ) -> dict[str, Any]:
        """What the saddle joins, in the order reactant, product; "intended" if these differ by the step proposed."""
        z = reaction.numbers
        wells = [end.positions for end in ends]
        if not bonding_differences(z, *wells):
            raise Rejected("ends have the same bonds")
        if min(energy - end.energy for end in ends) < LEAST_BARRIER:
            raise Rejected("no barrier")
        if reaction_keys(z, wells[0], wells[1], reaction.charge) & self.plan.excluded:
            raise Rejected("excluded")
        fits = [
            [not bonding_differences(z, well, end) for end in (reaction.reactant, reaction.product)] for well in wells
        ]
        swap = (fits[1][0] or fits[0][1]) and not (fits[0][0] or fits[1][1])
        if not any(map(any, fits)):  # an order of its own: fewer fragments first, then the more stable side
            order = [(int(fragments(bond_graph(z, end.positions)).max()), end.energy) for end in ends]
            swap = order[1] < order[0]
        if swap:
            ends, fits = ends[::-1], fits[::-1]
        proposed = compare_bonds(*(bond_graph(z, end.positions) for end in ends)) == step
        joined = fits[0][0] and fits[1][1] and proposed
        verdict = "intended" if joined else "half" if any(map(any, fits)) else "unintended"
        return {
            "outcome": verdict,
            "z": z.tolist(),
            "charge": reaction.charge,
            "spin": reaction.spin,
            **{key: centred(x) for key, x in (("r", ends[0].positions), ("ts", ts), ("p", ends[1].positions))},
            "energies": [round(float(e), 6) for e in (ends[0].energy, energy, ends[1].energy)],
            "imaginary_cm": round(frequency, 1),
        }


def _descend(potential: Potential, ts: np.ndarray, modes: Modes, sign: int) -> Search:
    """The relaxed well on one side of the saddle."""
    found = relaxed_end(potential, kick(ts, modes, sign), modes.hessian)
    if not found.converged and found.fmax > LOOSE_FMAX:
        raise Rejected("descent did not converge")
    return found
