"""What attempts at new reactions and the releveling of known ones share: potentials, ends, counting of calls."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
CALCULATOR_FAILED, WORKER_DIED = "calculator failed", "worker died"
NO_ANSWER = (CALCULATOR_FAILED, WORKER_DIED)
BROKEN = 10  # jobs on which a calculator fails before it has done anything: no use to go on
LOOSE_FMAX = 0.05  # eV/Angstrom, for ends of several fragments, whose drifting apart takes for ever


def failure(error: Exception) -> str:
    """What a record says of one of `FAILURES`, or of a molecule that the calculator cannot describe."""
    return "numerical failure" if isinstance(error, np.linalg.LinAlgError) else CALCULATOR_FAILED


def cause(error: Exception) -> str:
    """The calculator's own message in one of `FAILURES`, on one line, for a record beside its outcome."""
    said = getattr(error, "what", None) or str(error)
    return " ".join(said.removeprefix("the calculator failed: ").split())


def refuse_all_failed(failed: Sequence[Mapping[str, Any]], tried: int, calculator: str, least: int = 1) -> None:
    """Say so where the calculator failed on everything.

    Args:
        failed: records of the jobs on which it failed. tried: jobs that asked it. least: jobs that say enough.

    Raises:
        CalculatorError: it failed on all, and these are `least` or more; with its message.
    """
    if len(failed) < least or not failed or len(failed) < tried:
        return
    causes = Counter(record.get("cause", record["outcome"]) for record in failed)
    most, number = causes.most_common(1)[0]
    raise CalculatorError(
        f"failed on every attempt, {tried} of them: {most}" + (f" ({number} times)" if len(causes) > 1 else ""),
        where=f"calculator {calculator!r}",
        expected="energies and forces of the molecules given",
        remedy="check --calculator-kwargs, --charge and --spin, or choose another --calculator; then start again "
        "with --overwrite",
    )


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
