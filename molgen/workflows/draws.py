"""Draws from a flow with their energies, in pieces that are stored as they are finished.

The target is the Boltzmann distribution of the given molecule: of conformations whose bonds, contacts and handedness
are those of the peptide (`molgen.prose.validity`). A proposal that is another molecule is drawn again, at no energy:
draws are those of the flow restricted to the molecule, and the restricted density is the flow's over the share kept.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from molgen.checkpoint import STATE
from molgen.data.peptide import Peptide
from molgen.errors import CalculatorError, InputError
from molgen.npz import read_npz, write_npz
from molgen.pool import cores
from molgen.potentials.base import Potential
from molgen.potentials.openmm import OpenMMPotential
from molgen.potentials.parallel import ParallelPotential
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.validity import Validity, validate
from molgen.run import Progress, Run
from molgen.units import KB

# proposals a piece, on a CPU and on a GPU; part of what defines the bits, since sums depend on the shape of a batch
PIECE, GPU_PIECE = 1000, 4096
FEWEST = 16  # proposals of a piece that draws again
MOST = 50  # proposals a draw, beyond which the flow does not know the molecule
OUTSIDE, WRONG_CHIRALITY = "outside the space of conformations", "wrong chirality"
BAD_BOND, CONTACT, NON_FINITE = "bad bond", "contact", "non-finite energy"
# of runs (`molgen.run.METHOD`)
DRAWN = "conformations of right handedness, bonds and contacts, drawn again until there are n"
POOL_START, POOL_EACH = 4.0, 2e-4  # seconds: starting a process pool, and handing it one geometry


class Store:
    """Arrays by name, in the `state` folder of a run, or nowhere when there is no run."""

    def __init__(self, run: Run | None):
        self.folder = run.path(STATE) if run is not None else None

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """What `put` wrote under `name`; None if there is no such thing, or it cannot be read."""
        if self.folder is None:
            return None
        try:
            return read_npz(self.folder / f"{name}.npz", expected="stored draws", remedy="draw them again")
        except InputError:
            return None

    def put(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Write `arrays` whole or not at all.

        Raises:
            InputError: the disk is full.
        """
        if self.folder is not None:
            write_npz(self.folder / f"{name}.npz", arrays, compressed=False)

    def path(self, name: str) -> Path | None:
        """A folder for files of another kind."""
        return None if self.folder is None else self.folder / name


class Energies:
    """Energies of a peptide: one process, or a pool once it is known to pay.

    Args:
        workers: processes; "auto" measures an energy, on one thread, and starts a pool of all cores, a thread each,
            where that saves time.

    Attributes:
        potential: computes them now.
    """

    def __init__(self, peptide: Peptide, platform: str, workers: int | str):
        self.peptide, self.platform, self.workers = peptide, platform, workers
        self.potential = peptide.potential(platform, workers if isinstance(workers, int) else 1)
        if workers == "auto" and isinstance(self.potential, OpenMMPotential) and self.potential.platform == "CPU":
            self.potential.properties = {"Threads": "1"}  # all cores would be measured against all cores
        self._seconds, self._timed = 0.0, 0

    def __enter__(self) -> Energies:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self.potential, ParallelPotential):
            self.potential.close()

    def __call__(self, positions: np.ndarray, remaining: int = 0) -> np.ndarray:
        """Energies (n,) in eV of positions (n, N, 3), NaN where there is none; `remaining`: how many are to follow."""
        begin = time.perf_counter()
        energies = self.potential.energy(positions)
        self._seconds, self._timed = self._seconds + time.perf_counter() - begin, self._timed + len(positions)
        self.plan(remaining)
        return energies

    def plan(self, remaining: int, positions: np.ndarray | None = None) -> Potential:
        """The potential for `remaining` more evaluations; a pool if one was left to choose and pays.

        Args:
            positions: (n, N, 3), of which one is timed where nothing was, as in a resumed run.
        """
        if self.workers == "auto" and remaining and not self._timed and positions is not None:
            self.potential.energy(positions[:1])  # the first starts the context
            begin = time.perf_counter()
            self.potential.energy(positions[:1])
            self._seconds, self._timed = time.perf_counter() - begin, 1
        if self.workers == "auto" and self._timed:
            workers = cores()
            if pool_pays(self._seconds / self._timed, remaining, workers):
                self.workers = workers
                self.potential = self.peptide.potential(self.platform, workers)
        return self.potential


def pool_pays(seconds_each: float, remaining: int, cores: int) -> bool:
    """Whether a pool of `cores` processes finishes sooner, its start included; `seconds_each`: of one thread."""
    pooled = POOL_START + remaining * max(seconds_each / cores, POOL_EACH)
    return cores > 1 and pooled < remaining * seconds_each


@dataclass(frozen=True, eq=False)
class Draws:
    """n draws from one flow at one temperature, restricted to the molecule.

    Attributes:
        positions: (n, N, 3) Angstrom. log_q: (n,) log-density of the restricted flow, see `log_share`.
        energies: (n,) eV, NaN where there is none. validity: of the positions, all of them valid. temperature: K.
        proposals: how many it took. redrawn: those that were drawn again, by reason, each under the first that holds.
        calls: energies evaluated. seconds: {"sampling", "energies"}, those of earlier runs included.
    """

    positions: np.ndarray
    log_q: np.ndarray
    energies: np.ndarray
    validity: Validity
    temperature: float
    proposals: int
    redrawn: dict[str, int]
    calls: int
    seconds: dict[str, float]

    def __len__(self) -> int:
        return len(self.log_q)

    @property
    def log_share(self) -> float:
        """ln of the share of proposals that are the molecule: the restricted density is the flow's over this share."""
        return math.log(len(self) / self.proposals)

    @property
    def log_weights(self) -> np.ndarray:
        """(n,) -E/kT - ln q; -inf where there is no energy."""
        with np.errstate(invalid="ignore"):
            log_w = -self.energies / (KB * self.temperature) - self.log_q
        return np.where(np.isfinite(self.energies), log_w, -np.inf)

    @property
    def rejections(self) -> dict[str, int]:
        """Draws of weight zero, by reason."""
        lost = int((~np.isfinite(self.energies)).sum())
        return {NON_FINITE: lost} if lost else {}


def draw(
    flow: ProseFlow,
    layout: Layout,
    energies: Energies,
    n: int,
    temperature: float,
    seed: int,
    store: Store,
    name: str,
    *,
    stage: str = "sampling",
    progress: Progress = lambda stage, done, total: None,
) -> Draws:
    """Draw n samples of the molecule and compute their energies, piece by piece; pieces that `store` holds are read.

    Args:
        temperature: K. seed: proposal i depends on (seed, i) only; the draws are the first n that are the molecule.
        name: of the pieces in `store`. stage: what `progress` is told.

    Raises:
        CalculatorError: hardly a proposal is the molecule, or no sample has a finite energy.
    """
    pieces: list[dict[str, np.ndarray]] = []
    kept, tried, faults = 0, 0, Counter[str]()
    most = PIECE if flow.waves.device.type == "cpu" else GPU_PIECE
    while kept < n:
        count = min(most, n - kept if not tried else max(FEWEST, math.ceil((n - kept) * tried / max(kept, 1))))
        piece = store.get(f"{name}-{tried:07d}")
        if piece is None:
            begin, done = time.perf_counter(), kept
            x, log_q = propose(
                flow, layout, count, temperature, seed, first=tried,
                progress=_counter(lambda more, done=done: progress(stage, min(done + more, n), n)),
            )  # fmt: skip
            piece = _judged(layout, energies, x, log_q, n - kept, begin)
            store.put(f"{name}-{tried:07d}", piece)
        pieces.append(piece)
        verdicts = Validity.of_arrays([piece])
        faults.update(_faults(piece["log_q"], verdicts))
        tried += len(piece["log_q"])
        kept = tried - faults.total()
        progress(stage, min(kept, n), n)
        if tried >= PIECE and kept * MOST < tried:
            reasons = ", ".join(f"{number} x {reason}" for reason, number in faults.items())
            raise CalculatorError(
                f"{tried - kept} of {tried} proposals are not this molecule ({reasons})",
                where=layout.peptide.sequence,
                remedy="the flow does not know it: give other --weights, or a shorter peptide",
            )
    verdicts = Validity.of_arrays(pieces)
    x, log_q, energy = (np.concatenate([piece[key] for piece in pieces]) for key in ("positions", "log_q", "energies"))
    first = np.flatnonzero(np.isfinite(log_q) & verdicts.valid)[:n]
    proposals = int(first[-1]) + 1
    sampling, computing = np.sum([piece["seconds"] for piece in pieces], axis=0)
    seconds = {"sampling": float(sampling), "energies": float(computing)}
    drawn = Draws(
        x[first], log_q[first] - math.log(n / proposals), energy[first], verdicts.take(first), temperature, proposals,
        _faults(log_q[:proposals], verdicts.take(np.arange(proposals))), sum(int(p["calls"]) for p in pieces), seconds,
    )  # fmt: skip
    if not np.isfinite(drawn.energies).any():
        reason = next(iter(energies.potential.failures.values()), NON_FINITE)
        raise CalculatorError(f"no sample of {n} has a finite energy ({reason})", where=layout.peptide.sequence)
    return drawn


def _faults(log_q: np.ndarray, validity: Validity) -> dict[str, int]:
    """How many proposals are not the molecule, each under the first reason that holds, so that they add up."""
    faults = {
        OUTSIDE: ~np.isfinite(log_q),
        WRONG_CHIRALITY: validity.wrong_chirality,
        BAD_BOND: validity.bad_bond,
        CONTACT: validity.contact,
    }
    counts, left = {}, np.ones(len(log_q), dtype=bool)
    for reason, fault in faults.items():
        counts[reason], left = int((left & fault).sum()), left & ~fault
    return {reason: count for reason, count in counts.items() if count}


def _judged(
    layout: Layout, energies: Energies, x: np.ndarray, log_q: np.ndarray, wanted: int, begin: float
) -> dict[str, np.ndarray]:
    """A piece: proposals x (n, N, 3) and log_q (n,), sampled since `begin` (`time.perf_counter`), with their validity
    and the energies of the first `wanted` that are the molecule."""
    validity = validate(layout.peptide, x)
    middle, counted = time.perf_counter(), energies.potential
    energy, before = np.full(len(x), np.nan), counted.calls
    usable = np.flatnonzero(np.isfinite(log_q) & validity.valid)[:wanted]
    if len(usable):
        energy[usable] = energies(x[usable], wanted - len(usable))
    seconds = np.array([middle - begin, time.perf_counter() - middle])
    piece = {"positions": x, "log_q": log_q, "energies": energy, "seconds": seconds}
    return piece | {"calls": np.array(counted.calls - before)} | validity.arrays()


def _counter(report: Callable[[int], None]) -> Callable[[int], None]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        report(done)

    return count
