"""What a search for a transition state needs before it starts: its options checked, the calculator, the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.potentials.ase import AsePotential, calculator_from_spec
from molgen.potentials.base import Potential
from molgen.structures import MAX_ATOMS
from molgen.tsgen import Generator, load_model


def potential_for(
    calculator: Any, kwargs: Mapping[str, Any] | None, numbers: np.ndarray, charge: int, spin: int
) -> Potential:
    """The calculator of a molecule, or of several.

    Args:
        calculator, kwargs: as of :func:`molgen.find_ts`.
        numbers: (N,) atomic numbers. charge: e. spin: unpaired electrons.

    Raises:
        InputError: a Potential made for other atoms, charge or spin. CalculatorError: it cannot be built.
    """
    if kwargs and not isinstance(calculator, str):
        raise InputError(
            f"arguments {dict(kwargs)} beside a calculator that is built", where="calculator_kwargs", expected="none",
            remedy='give them to the calculator, or name it as "module:Class"',
        )  # fmt: skip
    if isinstance(calculator, Potential):
        for name, given, wanted in (
            ("atomic numbers", calculator.numbers.tolist(), numbers.tolist()),
            ("charge", calculator.charge, charge),
            ("spin", calculator.spin, spin),
        ):
            if given != wanted:
                raise InputError(
                    f"was made for {name} {given}",
                    where=type(calculator).__name__,
                    expected=f"{wanted}, as the reactant",
                )
        return calculator
    if isinstance(calculator, str):
        return calculator_from_spec(calculator, dict(kwargs or {}), numbers, charge, spin)
    return AsePotential(calculator, numbers, charge, spin)


def model_for(
    weights: str | Path, reaction: Reaction, device: str, dtype: torch.dtype, level: str, notes: list[str]
) -> Generator | None:
    """The model, or None with a warning when it does not know an element; `level` is the calculator's."""
    from ase.data import chemical_symbols

    model = load_model(weights, device, dtype)
    unknown = sorted(set(reaction.numbers.tolist()) - set(model.model.elements))
    if unknown:
        names = ", ".join(chemical_symbols[z] for z in unknown)
        notes.append(f"warning: the weights do not know {names}: using the sqrt-distance guess and physics only")
        return None
    fewest, most = model.config.get("atoms", (2, MAX_ATOMS))
    if len(reaction) < fewest:
        notes.append(
            f"warning: the weights saw {fewest} to {most} atoms, not {len(reaction)}: "
            "using the sqrt-distance guess and physics only"
        )
        return None
    if len(reaction) > most:
        notes.append(f"warning: the weights saw {fewest} to {most} atoms, here are {len(reaction)}: less reliable")
    if reaction.charge or reaction.spin:
        notes.append("warning: the weights saw neutral closed-shell reactions only; the guesses may be worse")
    if model.level not in ("", level):
        notes.append(f"guesses are of {model.level}, which the weights were trained on; the calculator is {level}")
    return model
