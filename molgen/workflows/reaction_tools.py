"""What attempts at new reactions and the releveling of known ones share: potentials, ends, counting of calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from molgen.data.sources import SourceMolecule
from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import bond_graph, fragments
from molgen.potentials.ase import AsePotential, calculator_from_spec
from molgen.potentials.base import Potential
from molgen.saddle.descent import relax
from molgen.saddle.optimize import Search

END_FMAX, END_CALLS = 0.02, 120
FAILURES = (CalculatorError, np.linalg.LinAlgError)  # of an attempt, not of the run
LOOSE_FMAX = 0.05  # eV/Angstrom, for ends of several fragments, whose drifting apart takes for ever


def failure(error: Exception) -> str:
    """What a record says of one of `FAILURES`, or of a molecule that the calculator cannot describe."""
    return "numerical failure" if isinstance(error, np.linalg.LinAlgError) else "calculator failed"


class Potentials:
    """Potentials of one molecule after the other.

    A user's calculator is built once; xTB anew (it is cheap and then keeps nothing of earlier molecules).

    Args:
        calculator, calculator_kwargs: as of `molgen ts`.
    """

    def __init__(self, calculator: str, calculator_kwargs: Mapping[str, Any] | None = None):
        self.spec, self.kwargs = calculator, dict(calculator_kwargs or {})
        self._calculator: Any = None

    def __call__(self, numbers: np.ndarray, charge: int = 0, spin: int = 0) -> Potential:
        """A fresh potential of the molecule: (N,) atomic numbers, charge in e, spin in unpaired electrons.

        Raises:
            InputError, CalculatorError: see :func:`molgen.potentials.ase.calculator_from_spec`.
        """
        if self._calculator is not None:
            return AsePotential(self._calculator, numbers, charge, spin)
        made = calculator_from_spec(self.spec, self.kwargs, numbers, charge, spin)
        if isinstance(made, AsePotential):
            self._calculator = made.calculator
        return made


def require_described(potentials: Potentials, molecules: Iterable[SourceMolecule]) -> None:
    """See that the calculator can be built and, as far as it tells before it runs, describe every molecule.

    Raises:
        InputError: it cannot; names the first such molecule. CalculatorError: it could not be built.
    """
    potentials(np.array([1, 1]))
    for molecule in molecules:
        try:
            potentials(molecule.numbers, molecule.charge, molecule.spin)
        except InputError as error:
            raise InputError(
                error.what, where=molecule.name, expected=error.expected, remedy=error.remedy or "remove the molecule"
            ) from error


def relaxed_end(potential: Potential, start: np.ndarray, hessian: np.ndarray | None = None) -> Search:
    """Minimise an end (N, 3) of a reaction to END_FMAX, one of several fragments to LOOSE_FMAX.

    Args:
        hessian: (3N, 3N) eV/Angstrom^2, where known.

    Returns:
        The search; after END_CALLS it ends unconverged.
    """

    def apart(search: Search) -> bool:
        loose = search.fmax < LOOSE_FMAX and len(search.path) > 5
        return loose and bool(fragments(bond_graph(potential.numbers, search.positions)).max() > 0)

    return relax(potential, start, fmax=END_FMAX, max_calls=END_CALLS, hessian=hessian, stop=apart)


def centred(x: np.ndarray) -> list[list[float]]:
    """Positions (N, 3), Angstrom, about their centre, as a record holds them."""
    return np.round(x - x.mean(0), 5).tolist()


@contextlib.contextmanager
def stage(name: str, potential: Potential, calls: dict[str, int]) -> Iterator[None]:
    """Note the gradient calls spent inside, also when the attempt ends there."""
    before = potential.calls
    try:
        yield
    finally:
        calls[name] = potential.calls - before
