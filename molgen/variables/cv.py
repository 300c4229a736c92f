"""Collective variables: differentiable functions of a structure, their values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from molgen.errors import InputError

STEEP = 1e6  # units/Angstrom; a gradient beyond, such as a torsion's within 1e-6 rad of a line, has no meaning
_STEEP_START = 1e3  # the same, of a start structure
_FAR = 1e8  # Angstrom; a coordinate beyond is no structure, and its square may overflow
_AT_ONCE = 4096  # structures, which bounds the memory of `values`
_TURN, _SHIFT = (0.7, -0.4, 1.1), (1.3, -0.7, 2.1)  # rad and Angstrom, any that are no symmetry
_INVARIANT = 1e-5  # relative; rounding makes 1e-12, single precision in a custom function 1e-7
FUNCTION = "a torch function of positions (B, N, 3) in Angstrom that returns values (B,)"
_LINE = 1.0  # degrees from a line at which a start structure is refused


@dataclass(frozen=True, eq=False)
class CV:
    """A collective variable.

    Attributes:
        name: its label, or what was written.
        unit: "A", "rad", another or "".
        period: 2 pi for a torsion, else None.
        function: positions (B, N, 3) float64 Angstrom -> values (B,) in `unit`; differentiable, if it is to be
            pushed along.
        bends: atoms i-j-k that must not lie on a line, where the gradient is undefined.
        definition: what it is, without its label and whichever end its atoms are named from, by which a wall is known
            to be on the same variable; else its name.
        references: structures (M, N, 3) in Angstrom that its text names, by that name.
    """

    name: str
    unit: str
    period: float | None
    function: Callable[[Tensor], Tensor]
    bends: tuple[tuple[int, int, int], ...] = ()
    definition: str = ""
    references: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        where = f"collective variable {self.name!r}"
        for key, kind in (("name", str), ("unit", str), ("definition", str)):
            if not isinstance(getattr(self, key), kind):
                raise InputError(f"{key} = {getattr(self, key)!r}", where=where, expected="a text")
        if not callable(self.function):
            raise InputError(f"function = {self.function!r}", where=where, expected=FUNCTION)
        number = isinstance(self.period, (int, float)) and not isinstance(self.period, bool)
        if self.period is not None and not (number and 0 < self.period < math.inf):
            raise InputError(f"period = {self.period!r}", where=where, expected="a number above 0, or None")
        if not self.definition:
            object.__setattr__(self, "definition", self.name)


def custom(name: str, function: Callable[[Tensor], Tensor], unit: str = "", period: float | None = None) -> CV:
    """Any torch function: positions (B, N, 3) float64 Angstrom -> (B,).

    It must not depend on where the molecule is and how it is turned: samples have no orientation of their own.
    """
    return CV(name, unit, period, function)


def linear(cvs: Sequence[CV], coefficients: Sequence[float]) -> CV:
    """Sum of coefficient times CV (angles in radians); keeps a unit that all share. None may be periodic."""
    for cv in cvs:
        if cv.period is not None:
            raise InputError(
                f"{cv.name!r} is periodic and cannot be part of a sum",
                expected="distances, angles and other variables without a period",
                remedy="use it as a variable of its own",
            )
    if not cvs or len(cvs) != len(coefficients) or not np.isfinite(coefficients).all():
        raise InputError(f"{len(cvs)} variables, coefficients {list(coefficients)}", expected="one number for each")
    units = {cv.unit for cv in cvs}
    pairs = list(zip(coefficients, cvs, strict=True))
    factors = [f" {'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c):g}*'}" for c in coefficients]
    name, definition = (
        "".join(factor + getattr(cv, text) for factor, cv in zip(factors, cvs, strict=True)).removeprefix(" + ").strip()
        for text in ("name", "definition")
    )
    return CV(
        name,
        units.pop() if len(units) == 1 else "",
        None,
        lambda x: torch.stack([c * cv.function(x) for c, cv in pairs]).sum(0),
        tuple(bend for cv in cvs for bend in cv.bends),
        definition,
        references={name: frames for cv in cvs for name, frames in cv.references.items()},
    )


def values_and_gradients(cvs: Sequence[CV], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values (B, D) and gradients (B, D, N, 3), in each CV's unit and unit/Angstrom, of positions (B, N, 3).

    Where a CV has no gradient (atoms on a line, coincident, not finite or beyond 1e8 A), its value and gradient are
    nan: reject these samples and count them.
    """
    positions = np.asarray(positions, dtype=np.float64)
    values = np.full((len(positions), len(cvs)), np.nan)
    gradients = np.full((len(positions), len(cvs), *positions.shape[1:]), np.nan)
    finite = np.flatnonzero((np.abs(positions) < _FAR).all((1, 2)))
    if not len(finite):
        return values, gradients
    for d, cv in enumerate(cvs):
        x = torch.tensor(positions[finite], requires_grad=True)
        with torch.enable_grad():
            value = _evaluated(cv, x)
            total = value.sum()
        if not value.requires_grad:
            raise InputError(
                "it has no gradient, so that nothing can be pushed along it",
                where=f"collective variable {cv.name!r}",
                expected="a function of the positions by torch operations, without steps",
            )
        gradient = torch.autograd.grad(total, x, materialize_grads=True)[0].numpy()
        value = value.detach().numpy()
        good = np.isfinite(value) & (np.abs(gradient).max((1, 2)) < STEEP)
        values[finite[good], d], gradients[finite[good], d] = value[good], gradient[good]
    return values, gradients


def values(cv: CV, positions: np.ndarray) -> np.ndarray:
    """Values (B,) of positions (B, N, 3), without gradients; nan where the CV is not defined."""
    positions = np.asarray(positions, dtype=np.float64)
    found = np.full(len(positions), np.nan)
    finite = np.flatnonzero((np.abs(positions) < _FAR).all((1, 2)))
    for begin in range(0, len(finite), _AT_ONCE):
        some = finite[begin : begin + _AT_ONCE]
        with torch.no_grad():
            value = _evaluated(cv, torch.tensor(positions[some]))
        found[some] = value.numpy()
    return found


def check_start(cvs: Sequence[CV], positions: np.ndarray) -> None:
    """Refuse a start structure (N, 3) at which a CV has no usable gradient, or depends on how the molecule lies.

    Raises:
        InputError: an angle of a CV within 1 degree of 0 or 180, a gradient that is not finite or beyond 1e3/A, or
            another value of the structure turned and moved.
    """
    x = torch.tensor(np.asarray(positions, dtype=np.float64)[None])
    _, gradients = values_and_gradients(cvs, x.numpy())
    steepness = np.abs(gradients).max((0, 2, 3))
    for cv, steep in zip(cvs, steepness, strict=True):
        where = f"collective variable {cv.name!r}"
        for bend in cv.bends:
            degrees = math.degrees(float(angle_at(x, *bend)))
            if not _LINE <= degrees <= 180 - _LINE:
                raise InputError(
                    f"angle {' '.join(map(str, bend))} is {degrees:.2f} degrees in the start structure: no gradient",
                    where=where,
                    expected=f"{_LINE:g} to {180 - _LINE:g} degrees",
                    remedy="choose other atoms, whose angle cannot straighten",
                )
        if not steep <= _STEEP_START:
            raise InputError(
                f"its gradient in the start structure is {'not finite' if np.isnan(steep) else f'{steep:.1e}/A'}",
                where=where,
                expected=f"a gradient below {_STEEP_START:g}/A",
                remedy="choose another variable or another start structure",
            )
    if len(positions) > 1:
        _check_invariance(cvs, x.numpy())


def _check_invariance(cvs: Sequence[CV], x: np.ndarray) -> None:
    """Samples have no place and orientation of their own, so that no CV may depend on them."""
    moved = (x - x.mean(1, keepdims=True)) @ Rotation.from_rotvec(_TURN).as_matrix() + _SHIFT
    for cv in cvs:
        here, there = (float(values(cv, place)[0]) for place in (x, moved))
        apart = abs(here - there)
        if cv.period is not None:
            apart = min(apart % cv.period, -apart % cv.period)
        if apart > _INVARIANT * (1 + abs(here)):
            raise InputError(
                f"is {here:.4g} in the start structure, and {there:.4g} after it is turned and moved",
                where=f"collective variable {cv.name!r}",
                expected="a function of distances and angles alone",
                remedy="measure from other atoms of the molecule",
            )


def _evaluated(cv: CV, x: Tensor) -> Tensor:
    """Values (B,) of x (B, N, 3); the function may be anybody's."""
    where, structures = f"collective variable {cv.name!r}", len(x)
    try:
        value = cv.function(x)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever it meets: an atom too many, NumPy on a tensor
        raise InputError(
            f"its function fails ({type(error).__name__}: {error})", where=where, expected=FUNCTION
        ) from error
    if not isinstance(value, Tensor):
        raise InputError(f"its function returns {type(value).__name__}", where=where, expected=FUNCTION)
    if value.shape != (structures,):
        raise InputError(
            f"its function returns shape {tuple(value.shape)}",
            where=where,
            expected=f"({structures},) for {structures} structures",
        )
    return value


def norm(vectors: Tensor) -> Tensor:
    """Length; its gradient at zero is nan, not torch's 0."""
    return (vectors**2).sum(-1).sqrt()


def angle_at(x: Tensor, i: int, j: int, k: int) -> Tensor:
    """Angle (B,) at j, rad; unlike `geometry.internal.angle`, its gradient on a line is nan."""
    u, v = x[:, i] - x[:, j], x[:, k] - x[:, j]
    return torch.atan2(norm(torch.linalg.cross(u, v)), (u * v).sum(-1))


def distinct(*atoms: int) -> None:
    """Refuse atoms that repeat."""
    if len(set(atoms)) < len(atoms):
        raise InputError(f"atoms {' '.join(map(str, atoms))} repeat", expected="different atoms")


def wrapped(values: np.ndarray, low: float, period: float) -> np.ndarray:
    """Values of a variable of `period`, moved into [low, low + period); those inside stay bit for bit."""
    shifted = np.mod(values - low, period)
    inside = (values >= low) & (values < low + period)
    return np.where(inside, values, low + np.where(shifted >= period, 0.0, shifted))  # mod of -1e-20 is the period
