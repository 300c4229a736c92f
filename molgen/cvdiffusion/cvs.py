"""Collective variables, differentiable, as people write them: "rc = distance 0 4 - distance 0 5".

Atoms count from 0. Lengths in Angstrom and angles in radians; `path-z` is in Angstrom^2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from molgen.cvdiffusion.references import References
from molgen.errors import InputError
from molgen.geometry.align import kabsch

STEEP = 1e6  # units/Angstrom; a gradient beyond, such as a torsion's within 1e-6 rad of a line, has no meaning
_STEEP_START = 1e3  # the same, of a start structure
_FAR = 1e8  # Angstrom; a coordinate beyond is no structure, and its square may overflow
_LINE = 1.0  # degrees from a line at which a start structure is refused

_TERM = re.compile(r"(?:(?P<factor>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*)?(?P<kind>\S+)(?:\s+(?P<rest>.*))?")


@dataclass(frozen=True, eq=False)
class CV:
    """A collective variable.

    Attributes:
        name: its label, or what was written.
        unit: "A", "rad" or "".
        period: 2 pi for a torsion, else None.
        function: positions (B, N, 3) float64 Angstrom -> values (B,) in `unit`, differentiable.
        bends: atoms i-j-k that must not lie on a line, where the gradient is undefined.
        definition: what it is without its label, by which a wall is known to be on the same variable; else its name.
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
        if not self.definition:
            object.__setattr__(self, "definition", self.name)


def distance(i: int, j: int) -> CV:
    """Distance of two atoms, Angstrom."""
    _distinct(i, j)
    return CV(f"distance {i} {j}", "A", None, lambda x: _norm(x[:, j] - x[:, i]))


def angle(i: int, j: int, k: int) -> CV:
    """Angle at j, 0 to pi; without gradient at both ends."""
    _distinct(i, j, k)
    return CV(f"angle {i} {j} {k}", "rad", None, lambda x: _bend(x, i, j, k), ((i, j, k),))


def torsion(i: int, j: int, k: int, l: int) -> CV:  # noqa: E741
    """Torsion angle in (-pi, pi], IUPAC sign; without gradient where three neighbours lie on a line."""
    _distinct(i, j, k, l)

    def function(x: Tensor) -> Tensor:
        a, b, c = x[:, j] - x[:, i], x[:, k] - x[:, j], x[:, l] - x[:, k]
        first, second = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
        value = torch.atan2(_norm(b) * (a * second).sum(-1), (first * second).sum(-1))
        value = value + 2 * math.pi * (value <= -math.pi)
        return value + 0 / (_norm(first) * _norm(second))  # nan on a line, where atan2 alone would have some value

    return CV(f"torsion {i} {j} {k} {l}", "rad", 2 * math.pi, function, ((i, j, k), (j, k, l)))


def volume(i: int, j: int, k: int, l: int) -> CV:  # noqa: E741
    """Signed volume of a tetrahedron of atoms, Angstrom^3, as `molgen.geometry.chirality.signed_volumes` has it.

    Of the four neighbours of a stereocentre, it changes its sign where the centre turns over: a wall holds the hand.
    """
    _distinct(i, j, k, l)

    def function(x: Tensor) -> Tensor:
        a, b, c = x[:, j] - x[:, i], x[:, k] - x[:, i], x[:, l] - x[:, i]
        return (a * torch.linalg.cross(b, c)).sum(-1) / 6

    return CV(f"volume {i} {j} {k} {l}", "A^3", None, function)


def coordination(a: Sequence[int], b: Sequence[int], r0: float, n: int = 6, m: int = 12) -> CV:
    """Number of contacts between the atoms `a` and `b`: sum over pairs of (1 - (r/r0)^n) / (1 - (r/r0)^m), n < m."""
    _distinct(*a, *b)
    if not (a and b):
        raise InputError("a group without atoms", expected="at least one atom on each side")
    if not (0 < r0 < math.inf and 0 < n < m):
        raise InputError(f"r0={r0} n={n} m={m}", expected="r0 above 0 (Angstrom) and whole numbers 0 < n < m")
    left, right, common = list(a), list(b), math.gcd(n, m)

    def function(x: Tensor) -> Tensor:
        r = _norm(x[:, left, None] - x[:, None, right])
        y = (r / r0) ** common  # both polynomials divided by 1 - y: nothing is 0/0 at r0
        return (_geometric(y, n // common) / _geometric(y, m // common)).sum((1, 2))

    powers = "" if (n, m) == (6, 12) else f" n={n} m={m}"
    return CV(f"coordination {','.join(map(str, a))} {','.join(map(str, b))} r0={r0:g}{powers}", "", None, function)


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
    name = "".join(
        f" {'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c):g}*'}{cv.name}" for c, cv in pairs
    ).removeprefix(" + ")
    return CV(
        name.strip(),
        units.pop() if len(units) == 1 else "",
        None,
        lambda x: torch.stack([c * cv.function(x) for c, cv in pairs]).sum(0),
        tuple(bend for cv in cvs for bend in cv.bends),
        references={name: frames for cv in cvs for name, frames in cv.references.items()},
    )


def rmsd(reference: np.ndarray, atoms: Sequence[int] | None = None) -> CV:
    """Root-mean-square deviation from `reference` (N, 3) after superposition, Angstrom; gradient 0 at the reference.

    Args:
        atoms: those that are superposed and compared; None for all.
    """
    target, chosen = _references(np.asarray(reference)[None], atoms)

    def function(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(_deviations(x, target, chosen)[:, 0], dim=(-2, -1)) / len(chosen) ** 0.5

    return CV("rmsd", "A", None, function)


def path_s(references: np.ndarray, atoms: Sequence[int] | None = None, rate: float | None = None) -> CV:
    """Progress along a path, 0 near its first structure and 1 near its last.

    Args:
        references: (M, N, 3) structures at about equal steps, Angstrom.
        atoms: those that are superposed and compared; None for all.
        rate: lambda, 1/Angstrom^2; None for 2.3 / mean square deviation of neighbours.

    Source: Branduardi, Gervasio, Parrinello, J. Chem. Phys. 126, 054103 (2007), with s divided by its largest value.
    """
    distances, rate = _path(references, atoms, rate)

    def function(x: Tensor) -> Tensor:
        weights = torch.softmax(-rate * distances(x), dim=-1)
        return weights @ torch.linspace(0, 1, weights.shape[-1], dtype=weights.dtype)

    return CV("path-s", "", None, function)


def path_z(references: np.ndarray, atoms: Sequence[int] | None = None, rate: float | None = None) -> CV:
    """Distance from a path, -1/lambda ln sum exp(-lambda d^2), Angstrom^2 (may fall below 0); see `path_s`."""
    distances, rate = _path(references, atoms, rate)
    return CV("path-z", "", None, lambda x: -torch.logsumexp(-rate * distances(x), dim=-1) / rate)


def custom(name: str, function: Callable[[Tensor], Tensor], unit: str = "", period: float | None = None) -> CV:
    """Any torch function: positions (B, N, 3) float64 Angstrom -> (B,)."""
    return CV(name, unit, period, function)


def parse_cv(text: str, atoms: int, references: References | None = None) -> CV:
    """The collective variable that `text` names, for a molecule of `atoms` atoms.

    One of the kinds in `KINDS`, or a sum "0.5*distance 0 4 - angle 0 1 2" (angles in radians; spaces around + and -),
    after an optional label "rc = ". Its name is the label, or the text.

    Args:
        references: where structures named in `text` come from; None: files that count from the current folder.

    Raises:
        InputError: unknown kind, atoms that do not exist or repeat, a file that cannot be read or does not fit.
    """
    where = f"collective variable {text!r}"
    label = re.match(r"\s*([^\s=]+)\s*=\s*", text)
    body = " ".join((text[label.end() :] if label else text).split())
    lead = body[0] if body[:1] in ("+", "-") else ""
    first, *others = re.split(r"\s([-+])\s", body.removeprefix(lead).strip())
    terms, factors = [], []
    for sign, piece in zip([lead, *others[0::2]], [first, *others[1::2]], strict=True):
        match = _TERM.fullmatch(piece)
        kind = match["kind"].lower() if match else ""
        if not match or kind not in KINDS:
            raise InputError(
                f"no kind of variable {kind!r}" if kind else "a variable is missing",
                where=where,
                expected="; ".join(usage for usage, _ in KINDS.values()),
                remedy="write one of these, or a sum of them with spaces around + and -; atoms count from 0",
            )
        usage, build = KINDS[kind]
        try:
            cv = build(match["rest"] or "", atoms, references or References())
        except InputError as error:
            remedy = error.remedy or f"write {usage}; atoms count from 0"
            raise InputError(error.what, where=where, expected=error.expected or usage, remedy=remedy) from error
        terms.append(replace(cv, name=f"{kind} {match['rest']}"))
        factors.append(float(match["factor"] or 1) * (-1 if sign == "-" else 1))
    try:
        cv = terms[0] if factors == [1] else linear(terms, factors)
    except InputError as error:
        raise InputError(error.what, where=where, expected=error.expected, remedy=error.remedy) from error
    return replace(cv, name=label[1] if label else body, definition=cv.name)


def evaluate(cvs: Sequence[CV], positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
            value = cv.function(x)
            total = value.sum()
        if value.shape != (len(finite),) or not value.requires_grad:
            raise InputError(
                f"its function returns shape {tuple(value.shape)}, differentiable: {value.requires_grad}",
                where=f"collective variable {cv.name!r}",
                expected=f"({len(finite)},) for {len(finite)} structures, computed from them by torch operations",
            )
        gradient = torch.autograd.grad(total, x, materialize_grads=True)[0].numpy()
        value = value.detach().numpy()
        good = np.isfinite(value) & (np.abs(gradient).max((1, 2)) < STEEP)
        values[finite[good], d], gradients[finite[good], d] = value[good], gradient[good]
    return values, gradients


def check_start(cvs: Sequence[CV], positions: np.ndarray) -> None:
    """Refuse a start structure (N, 3) at which a CV has no usable gradient.

    Raises:
        InputError: an angle of a CV within 1 degree of 0 or 180, or a gradient that is not finite or beyond 1e3/A.
    """
    x = torch.tensor(np.asarray(positions, dtype=np.float64)[None])
    _, gradients = evaluate(cvs, x.numpy())
    steepness = np.abs(gradients).max((0, 2, 3))
    for cv, steep in zip(cvs, steepness, strict=True):
        where = f"collective variable {cv.name!r}"
        for bend in cv.bends:
            degrees = math.degrees(float(_bend(x, *bend)))
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


def _norm(vectors: Tensor) -> Tensor:
    """Length; its gradient at zero is nan, not torch's 0."""
    return (vectors**2).sum(-1).sqrt()


def _bend(x: Tensor, i: int, j: int, k: int) -> Tensor:
    u, v = x[:, i] - x[:, j], x[:, k] - x[:, j]
    return torch.atan2(_norm(torch.linalg.cross(u, v)), (u * v).sum(-1))


def _geometric(y: Tensor, terms: int) -> Tensor:
    """1 + y + ... + y^(terms - 1)."""
    total = torch.ones_like(y)
    for _ in range(terms - 1):
        total = total * y + 1
    return total


def _distinct(*atoms: int) -> None:
    if len(set(atoms)) < len(atoms):
        raise InputError(f"atoms {' '.join(map(str, atoms))} repeat", expected="different atoms")


def _references(references: np.ndarray, atoms: Sequence[int] | None) -> tuple[Tensor, list[int]]:
    """The chosen atoms of the references, (M, n, 3), and their indices."""
    chosen = list(range(references.shape[1])) if atoms is None else list(atoms)
    _distinct(*chosen)
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} atoms to superpose", expected="at least 2")
    return torch.tensor(references[:, chosen], dtype=torch.float64), chosen


def _deviations(x: Tensor, target: Tensor, atoms: list[int]) -> Tensor:
    """Displacements (B, M, n, 3) of the atoms of x, superposed on each target (M, n, 3).

    The optimal motion is held fixed in the gradient; that of the square deviation is exact, as it is stationary there.
    """
    mobile = x[:, None, atoms].expand(-1, len(target), -1, -1)
    rotation, translation = kabsch(mobile.detach(), target.expand_as(mobile))
    return mobile @ rotation.mT + translation[..., None, :] - target


def _path(
    references: np.ndarray, atoms: Sequence[int] | None, rate: float | None
) -> tuple[Callable[[Tensor], Tensor], float]:
    """Mean square deviations (B, M) from the references as a function of positions, and lambda."""
    if len(references) < 2:
        raise InputError(f"a path of {len(references)} structures", expected="at least 2, at about equal steps")
    target, chosen = _references(np.asarray(references), atoms)
    everyone = list(range(len(chosen)))
    steps = torch.stack([_deviations(b[None], a[None], everyone) for a, b in zip(target, target[1:], strict=False)])
    square = float((steps**2).sum(-1).mean())
    if rate is None and square < 1e-6:
        raise InputError("neighbours of the path are the same structure", expected="structures that differ")
    rate = 2.3 / square if rate is None else rate
    return lambda x: (_deviations(x, target, chosen) ** 2).sum(-1).mean(-1), rate


def _indices(words: Sequence[str], atoms: int, count: int | None = None) -> list[int]:
    if count is not None and len(words) != count:
        raise InputError(f"{len(words)} atoms instead of {count}")
    for word in words:
        if not word.isdecimal() or int(word) >= atoms:
            raise InputError(f"no atom {word!r}", expected=f"atoms 0 to {atoms - 1}")
    return [int(word) for word in words]


def _coordination(rest: str, atoms: int, _: References) -> CV:
    words = rest.split()
    groups, options = [w for w in words if "=" not in w], dict(w.split("=", 1) for w in words if "=" in w)
    if len(groups) != 2 or "r0" not in options or not options.keys() <= {"r0", "n", "m"}:
        raise InputError(f"cannot read {rest!r}")
    a, b = (_indices(group.split(","), atoms) for group in groups)
    try:
        r0, n, m = float(options["r0"]), int(options.get("n", 6)), int(options.get("m", 12))
    except ValueError as error:
        raise InputError(str(error), expected="a number r0 and whole numbers n and m") from error
    return coordination(a, b, r0, n, m)


def _from_file(build: Callable[[np.ndarray, list[int] | None], CV]) -> Callable[[str, int, References], CV]:
    """Builder of a kind that takes "FILE [atoms]", the brackets optional."""

    def read(rest: str, atoms: int, references: References) -> CV:
        match = re.fullmatch(r"(\S.*?)(?:\s+\[(.*)\]|\s+([\d,]+))?", rest)
        if not match:
            raise InputError("no file given")
        listed = match[2] if match[2] is not None else match[3]
        chosen = None if listed is None else _indices(re.split(r"[\s,]+", listed.strip()), atoms)
        frames = references.frames(match[1], atoms)
        return replace(build(frames, chosen), references={match[1]: frames})

    return read


def _rmsd_of_one(frames: np.ndarray, atoms: list[int] | None) -> CV:
    if len(frames) != 1:
        raise InputError(f"the file holds {len(frames)} structures", expected="one")
    return rmsd(frames[0], atoms)


# What people write, and its builder: (arguments, number of atoms, references) -> CV.
KINDS: dict[str, tuple[str, Callable[[str, int, References], CV]]] = {
    "distance": ("distance I J", lambda rest, n, _: distance(*_indices(rest.split(), n, 2))),
    "angle": ("angle I J K", lambda rest, n, _: angle(*_indices(rest.split(), n, 3))),
    "torsion": ("torsion I J K L", lambda rest, n, _: torsion(*_indices(rest.split(), n, 4))),
    "volume": ("volume I J K L", lambda rest, n, _: volume(*_indices(rest.split(), n, 4))),
    "coordination": ("coordination I,... J,... r0=R [n=6 m=12]", _coordination),
    "rmsd": ("rmsd FILE [I,J,...]", _from_file(_rmsd_of_one)),
    "path-s": ("path-s FILE [I,J,...]", _from_file(path_s)),
    "path-z": ("path-z FILE [I,J,...]", _from_file(path_z)),
}
