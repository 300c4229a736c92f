"""What a free-energy run needs before its first round: input checked, coordinates, target, network, starting frames."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.cvdiffusion.controller import Controller, ControllerConfig, build_controller
from molgen.cvdiffusion.internal import END, InternalSpace, tree_zmatrix
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.plumed import check_names
from molgen.cvdiffusion.sampler import Judge, Sampler
from molgen.cvdiffusion.space import CartesianSpace, Space
from molgen.cvdiffusion.start import starting_frames
from molgen.cvdiffusion.target import Target, closest_allowed
from molgen.cvdiffusion.walls import Wall, check_walls, parse_wall
from molgen.errors import InputError, check_temperature
from molgen.geometry.bonds import bond_graph, bond_names, fragments
from molgen.geometry.internal import ZMatrix
from molgen.potentials.composite import BiasPotential, SumPotential
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.importance import normalised, psis
from molgen.rng import generator, sample_seed
from molgen.run import Run
from molgen.units import KB
from molgen.variables import CV, Molecule, check_start, parse_cv, values_and_gradients
from molgen.workflows.fes_grid import axis_of
from molgen.workflows.fes_settings import FesSettings, check_settings
from molgen.workflows.fes_system import System

FRAMES, START, WOUND = 1, 2, 3  # streams of random numbers beside those of the sampler
FLOOR = 6.0  # depth below the lowest starting frame, eV, that is no product but a hole of the potential
MOST_NODES = 20_000_000  # nodes of the grid of the bias
REHEARSED = 200  # frames to whiten by, without energies
LARGE = 30  # number of atoms above which the trunk is the default controller


class Prior(Protocol):
    """What is known of a reaction before its run (see `molgen.workflows.fes_from_ts`)."""

    @property
    def frames(self) -> np.ndarray:
        """(S, N, 3) Angstrom, where the short simulations begin, under the filled bias."""
        ...

    def fill(self, bias: WellTemperedBias) -> None:
        """Give the fresh bias its first hills."""
        ...

    def report(self, ensemble: Ensemble, run: Run | None, units: str) -> tuple[dict[str, Any], list[str]]:
        """Entries for the summary, energies in `units`, and what could not be found, in words."""
        ...


@dataclass(frozen=True, eq=False)
class Problem:
    """Everything checked and built that a run needs before its first energy.

    Attributes:
        notes: for the summary. texts: variables and walls as they were written; None if one was built otherwise.
    """

    system: System
    cvs: list[CV]
    walls: list[Wall]
    bias: WellTemperedBias
    temperature: float
    settings: FesSettings
    notes: list[str]
    prior: Prior | None = None
    texts: tuple[list[str], list[str]] | None = None

    @classmethod
    def of(
        cls,
        system: System,
        cvs: Sequence[CV | str],
        temperature: float,
        ranges: Sequence[tuple[float, float] | None] | None,
        walls: Sequence[Wall | str],
        settings: FesSettings,
        references: Mapping[str, np.ndarray] | None = None,
        prior: Prior | None = None,
    ) -> Problem:
        """Check the input.

        Args:
            references: structures that the texts of variables and walls name, instead of files. prior: see
                :class:`Prior`; a run begins from its frames.

        Raises:
            InputError: what cannot be used, and why.
        """
        check_temperature(temperature)
        atoms = len(system.numbers)
        molecule = system.molecule(references)
        variables = _built(cvs, molecule)
        if not 1 <= len(variables) <= 3:
            raise InputError(f"{len(variables)} collective variables", where="--cv", expected="one to three")
        check_settings(settings, len(system.starts if prior is None else prior.frames), atoms)
        if len({cv.name for cv in variables}) < len(variables):
            raise InputError("a collective variable is given twice", where="--cv", expected="different ones")
        named = {cv.name: cv for cv in variables}
        if not isinstance(walls, Iterable):
            raise InputError(f"{walls!r} given", where="--wall", expected="texts or Walls; () for none")
        for wall in walls:
            if not isinstance(wall, (str, Wall)):
                raise InputError(f"{wall!r} is no wall", where="--wall", expected="a text, or a Wall")
        built = [parse_wall(wall, molecule, named) if isinstance(wall, str) else wall for wall in walls]
        _refuse_twins(variables, system)
        for start in system.starts:
            check_start([*variables, *(w.cv for w in built)], start)
            check_walls(built, start)
        limits = list(ranges) if ranges is not None else [None] * len(variables)
        if len(limits) != len(variables):
            raise InputError(
                f"{len(limits)} ranges for {len(variables)} collective variables", where="--range",
                expected="one for each, or none",
            )  # fmt: skip
        widths = settings.widths or (None,) * len(variables)
        if len(widths) != len(variables):
            raise InputError(
                f"{len(widths)} hill widths for {len(variables)} collective variables", where="--hill-width",
                expected="one for each",
            )  # fmt: skip
        values = values_and_gradients(variables, system.starts)[0]
        axes, chosen, fences = [], [], []
        for d, (cv, limit, width) in enumerate(zip(variables, limits, widths, strict=True)):
            axis, used, fence = axis_of(
                cv, limit, built, width, settings.bins, values[:, d], system.numbers, KB * temperature
            )
            axes.append(axis)
            chosen.append(used)
            fences += fence
        nodes = math.prod(axis.bins + 1 for axis in axes)
        if nodes > MOST_NODES:
            raise InputError(
                f"hills of {', '.join(f'{width:.3g}' for width in chosen)} need a grid of {nodes:.1e} nodes",
                where="--hill-width", expected=f"at most {MOST_NODES:.0e}", remedy="widen the hills, or narrow --range",
            )  # fmt: skip
        bias = WellTemperedBias(axes, chosen, settings.gamma, temperature, cap=settings.cap * KB * temperature)
        check_names(bias)
        written = all(isinstance(given, str) for given in (*cvs, *walls))
        texts = ([str(cv) for cv in cvs], [str(wall) for wall in walls]) if written else None
        return cls(system, variables, built + fences, bias, temperature, settings, [*system.notes], prior, texts)

    def sampler(self, seed: int, log: Callable[[str], None], judge: Judge) -> Sampler:
        """The sampler after its starting frames, which cost energies; `judge` gives the figures of a round."""
        system, s, spent, begin = self.system, self.settings, self.system.potential.calls, time.monotonic()
        odd, known = self._odd(), len(self.notes)
        for note in self.notes:
            log(note)
        log("a short simulation of each starting structure")
        potential, starts = system.potential, system.starts
        if self.prior is not None:
            self.prior.fill(self.bias)
            potential, starts = SumPotential(potential, BiasPotential(self._push, system.numbers)), self.prior.frames
        positions = starting_frames(
            potential, self.walls, starts, self.temperature, s.frames, sample_seed(seed, FRAMES)
        )
        schedule, space = self._space(positions, mirror=not odd)
        points = space.points(positions, generator(seed, WOUND))
        frames = self.target(space).evaluate(points, np.zeros(len(points)), 0)
        frames = frames.take(frames.accepted)
        if not len(frames):
            raise InputError("no frame of the short simulation can be used", where="starting structures")
        target = self.target(space, float(frames.energies.min()) - FLOOR)
        controller = self._controller(schedule, space, odd, sample_seed(seed, START))
        still = [cv.name for cv, values in zip(self.cvs, frames.cvs.T, strict=True) if np.ptp(values) < 1e-6]
        for name in still:
            self.notes.append(f"{name} does not move in the starting simulation: is it constant by construction?")
        self.notes.extend(self._unbonded())
        if isinstance(space, InternalSpace) and (kept := self.system.invertible()):
            self.notes.append(
                f"internal coordinates keep atom {kept[0]} on the side of its neighbours where it starts; with "
                "--coordinates cartesian it turns inside out"
            )
        for note in self.notes[known:]:
            log(note)
        return Sampler(
            target, controller, schedule, s.sampler, frames, seed=seed, fixed_kernels=s.fixed_kernels, judge=judge,
            weigh=lambda log_weights: normalised(psis(log_weights)), calls_before=spent,
            prepared=time.monotonic() - begin,
        )  # fmt: skip

    def rehearsal(self) -> Sampler:
        """A sampler that has learned nothing, on a few frames beside the first start: to see what its steps cost."""
        odd, rng = self._odd(), generator(0)
        positions = self.system.starts[0] + 0.01 * rng.standard_normal((REHEARSED, *self.system.starts.shape[1:]))
        schedule, space = self._space(positions, mirror=not odd)
        target = self.target(space)
        points = space.points(positions[:8], rng)  # each costs an energy
        frames = target.evaluate(points, np.zeros(len(points)), 0)
        frames = frames.take(frames.accepted)
        if not len(frames):
            raise InputError("no structure beside the first start has an energy", where="starting structures")
        controller = self._controller(schedule, space, odd, 0)
        return Sampler(target, controller, schedule, self.settings.sampler, frames, fixed_kernels=True)

    def target(self, space: Space, floor: float = -np.inf) -> Target:
        """What is sampled, in the coordinates of `space`; energies below `floor`, eV, are rejected."""
        system = self.system
        centres, hands = system.stereocentres()
        return Target(
            system.potential, self.cvs, self.walls, self.bias, self.temperature, closest_allowed(system.numbers),
            space, centres, hands, floor,
        )  # fmt: skip

    def _push(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (B,) eV and gradient (B, N, 3) eV/A of the bias."""
        values, slopes = values_and_gradients(self.cvs, positions)
        energy, push = self.bias.evaluate(values)
        return energy, np.einsum("bd,bdna->bna", push, slopes)

    def _singled_out(self) -> set[int]:
        """Atoms that a collective variable or a wall depends on."""
        slopes = values_and_gradients([*self.cvs, *(wall.cv for wall in self.walls)], self._shaken())[1]
        return set(map(int, np.flatnonzero(~(np.abs(slopes).max((0, 1, 3)) == 0))))

    def _shaken(self) -> np.ndarray:
        """The starts without their symmetry, at which a variable may hide what it depends on."""
        return self.system.starts + 0.05 * generator(0).standard_normal(self.system.starts.shape)

    def _odd(self) -> bool:
        """Whether a reflection changes a variable or a wall (a torsion: yes), and no stereocentre would tell."""
        if len(self.system.stereocentres()[0]):
            return False  # the mirror image is known for what it is
        variables = [*self.cvs, *(wall.cv for wall in self.walls)]
        here, there = (values_and_gradients(variables, sign * self._shaken())[0] for sign in (1, -1))
        return len(self.system.numbers) > 1 and not np.abs(here - there).max() <= 1e-6

    def _unbonded(self) -> list[str]:
        """Torsions of a known topology whose atoms are no chain: most often another order of atoms than was thought."""
        if self.system.topology is None:
            return []
        bonds, found = self.system.bonds, []
        for cv in self.cvs:
            pairs = [pair for bend in cv.bends for pair in zip(bend, bend[1:], strict=False)]
            gaps = [f"{i} and {j}" for i, j in pairs if not bonds[i, j]]
            if cv.period is not None and gaps:
                found.append(f"{cv.name}: atoms {gaps[0]} are not bonded; is the order of atoms what you think?")
        return found

    def _space(self, frames: np.ndarray, mirror: bool) -> tuple[Schedule, Space]:
        """The coordinates of the process, and its times in them."""
        system, fixed, schedule = self.system, self._singled_out(), self.settings.schedule
        if coordinates_of(system, self.settings.coordinates, self.cvs) == "cartesian":
            space = CartesianSpace(len(system.numbers), system.exchangeable(fixed), mirror)
            return replace(schedule, spread=self._spread(frames)), space
        z = self.zmatrix()
        return replace(schedule, spread=1.0, end=END), InternalSpace.whitened(z, frames)

    def zmatrix(self) -> ZMatrix:
        """Of the first start."""
        system = self.system
        return tree_zmatrix(system.numbers, system.bonds, system.starts[0], self._singled_out())

    def _spread(self, x: np.ndarray) -> float:
        """Variance of a coordinate over the frames (n, N, 3), Angstrom^2: the size of the molecule."""
        if x.shape[1] == 1:
            return max(float(x.var(0).mean()), 1.0)
        x = x - x.mean(1, keepdims=True)
        return float((x**2).sum((1, 2)).mean() / (3 * x.shape[1] - 3))

    def _controller(self, schedule: Schedule, space: Space, odd: bool, seed: int) -> Controller:
        s, numbers, kind = self.settings, self.system.numbers, self.settings.controller
        periods = tuple(space.periods.tolist()) if isinstance(space, InternalSpace) else ()
        if periods:
            kind = "internal"
        if kind == "auto":
            kind = "point" if len(numbers) == 1 else ("pair" if len(numbers) <= LARGE else "trunk")
        labels = np.arange(len(numbers))
        for group in space.symmetry if isinstance(space, CartesianSpace) else []:
            labels[group] = min(group)
        quadruples: tuple[tuple[int, ...], ...] = ()
        if odd and kind == "pair":
            quadruples = tuple(tuple(map(int, q)) for q in self.system.chains())
        config = ControllerConfig(
            kind, tuple(map(int, labels)), spread=schedule.spread, width=space.width or s.sampler.width,
            least=schedule.end, most=schedule.start**0.5, hidden=s.hidden, quadruples=quadruples, periods=periods,
            odd=8 if odd and kind == "trunk" else 0,
        )  # fmt: skip
        torch.manual_seed(seed)
        return build_controller(config)


def _refuse_twins(variables: Sequence[CV], system: System) -> None:
    """Refuse variables that are one under two names, "distance 0 1" and "distance 1 0"."""
    x = system.starts[:1] + 0.05 * generator(0).standard_normal((8, *system.starts.shape[1:]))
    values = values_and_gradients(variables, x)[0]
    for i, j in itertools.combinations(range(len(variables)), 2):
        if min(np.abs(values[:, i] - sign * values[:, j]).max() for sign in (1, -1)) < 1e-9:
            raise InputError(
                f"{variables[i].name!r} and {variables[j].name!r} are the same", where="--cv", expected="different ones"
            )


def _built(cvs: Sequence[CV | str], molecule: Molecule) -> list[CV]:
    """Variables, those given as text read.

    Raises:
        InputError: one is neither.
    """
    if not isinstance(cvs, Iterable):
        raise InputError(f"{cvs!r} given", where="--cv", expected="one to three, as texts or CVs")
    for cv in cvs:
        if not isinstance(cv, (str, CV)):
            raise InputError(f"{cv!r} is no collective variable", where="--cv", expected="a text, or a CV")
    return [parse_cv(cv, molecule) if isinstance(cv, str) else cv for cv in cvs]


def coordinates_of(system: System, wanted: str, cvs: CV | str | Sequence[CV | str]) -> str:
    """ "cartesian" or "internal".

    "auto" is internal where bonds stay, no ring is cut, no group is linear and no nitrogen may turn inside out. Bonds
    stay in a force field (a topology is known), and where nothing but torsions is pushed along.

    Raises:
        InputError: internal coordinates are wanted, and the molecule has none; no such variable.
    """
    if wanted == "internal":
        _refuse_cut(system)
        tree_zmatrix(system.numbers, system.bonds, system.starts[0])
    if wanted != "auto":
        return wanted
    tree = int(system.bonds.sum()) // 2 == len(system.numbers) - 1
    molecule, cvs = system.molecule(), [cvs] if isinstance(cvs, (CV, str)) else cvs
    variables = _built(cvs, molecule)
    # without a variable, a path's for one, nothing says that bonds stay
    turned = bool(variables) and all(_turns(cv, system.bonds) for cv in variables)
    if not tree or system.topology is None and not turned:
        return "cartesian"
    if system.invertible():
        return "cartesian"
    try:
        return coordinates_of(system, "internal", cvs)
    except InputError:
        return "cartesian"


def _refuse_cut(system: System) -> None:
    """Refuse starts that are each in one piece, while the bonds that they share are not: of a transferred hydrogen."""
    each = bond_graph(system.numbers, system.starts)
    pieces = [fragments(bonds).max() for bonds in (system.bonds, *each)]
    if pieces[0] > max(pieces[1:]):
        changed = np.argwhere(np.triu(each.any(0) & ~each.all(0)))
        raise InputError(
            f"{bond_names(system.numbers, changed)}: bonded in some starting structures and not in others",
            where="internal coordinates", expected="bonds that do not change", remedy="use --coordinates cartesian",
        )  # fmt: skip


def _turns(cv: CV, bonds: np.ndarray) -> bool:
    """Whether a variable is the torsion of a chain of bonded atoms."""
    match = re.fullmatch(r"torsion (\d+) (\d+) (\d+) (\d+)", cv.definition)
    atoms = [int(k) for k in match.groups()] if match else []
    return bool(atoms) and max(atoms) < len(bonds) and all(bonds[i, j] for i, j in itertools.pairwise(atoms))
