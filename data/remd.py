"""Temperature replica exchange of a peptide with OpenMM, resumable, one process a sequence.

LangevinMiddle (friction 1/ps, 3.125 fs, hydrogen mass 4 amu, no constraints; masses do not change the distribution of
configurations). Every replica starts from a conformation of its own, every second one with the peptide bonds before
proline cis: they do not turn in nanoseconds, not even when hot, and both forms matter. On request one of four starts
with another peptide bond cis. Frames of such peptides hold both forms, though not in their equilibrium shares. A
replica spends 30 ps at the highest temperature and 10 ps at its own; then a frame is recorded every ps, after
neighbours have attempted an exchange (Sugita & Okamoto, Chem. Phys. Lett. 314 (1999) 141). Moves of another kind may
follow each exchange, such as those of a flow (`molgen.prose.moves`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from molgen.data.md import STATE, TEMPERATURES, MDSet, save_md
from molgen.data.peptide import Peptide, build_peptide
from molgen.data.start import start_structure
from molgen.data.stereochemistry import before_proline, wrong_chirality
from molgen.errors import CalculatorError, InputError
from molgen.npz import read_npz, write_npz
from molgen.potentials.openmm import SMALL
from molgen.rng import generator, sample_seed
from molgen.units import KB, KJ_MOL, NM

STEP_PS, STEPS = 1 / 320, 320  # time step, and steps between frames: one ps
HYDROGEN_MASS = 4.0
HOT, SETTLE = 30, 10  # ps at the highest temperature, then at the own one, before recording
SAVE_SECONDS = 10.0


class Moves(Protocol):
    """Moves between conformations that leave the distribution at every temperature as it is.

    Attributes:
        hash: of the weights that make the moves, for the manifest.
    """

    hash: str

    def named(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n, N, 3) of start structures, equivalent atoms named as the moves do."""
        ...

    def __call__(
        self, move: int, positions: np.ndarray, energies: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (T, N, 3) in Angstrom and energies (T,) in eV after move number `move`, (T,) which changed."""
        ...


def exchange(energies: np.ndarray, temperatures: np.ndarray, cycle: int, uniform: np.ndarray) -> tuple[np.ndarray, int]:
    """One round of neighbour exchanges: pairs (0, 1), (2, 3), ... in even cycles, (1, 2), ... in odd ones.

    Args:
        energies: (T,) eV of the configurations at temperatures (T,) K, which rise or fall.
        cycle: chooses the pairs. uniform: (T,) numbers in [0, 1), one used a pair.

    Returns:
        (T,) the configuration that each temperature has afterwards, and how many pairs were exchanged. A pair is
        exchanged with probability min(1, exp((1/kT_i - 1/kT_j) (E_i - E_j))).
    """
    order = np.arange(len(energies))
    accepted = 0
    for i in range(cycle % 2, len(energies) - 1, 2):
        gain = (1 / temperatures[i] - 1 / temperatures[i + 1]) / KB * (energies[i] - energies[i + 1])
        if uniform[i] < np.exp(min(0.0, gain)):
            order[[i, i + 1]] = order[[i + 1, i]]
            accepted += 1
    return order, accepted


class ReplicaExchange:
    """Replicas of one System, one a temperature, that run and exchange.

    Args:
        system: OpenMM System. starts: (T, N, 3) Angstrom. temperatures: (T,) K.
        seed: of velocities, noise and exchanges. platform: OpenMM platform; one thread.
        hot, settle: cycles at the highest temperature, then at the own one, before `cycle` 0.
        steps, step_ps: of a cycle. moves: made after the exchange of each cycle that is recorded.

    Attributes:
        cycle: cycles recorded so far; negative while it equilibrates.
        accepted, attempted: exchanges. moved: (T,) cycles in which a move changed the conformation.
    """

    def __init__(
        self,
        system: Any,
        starts: np.ndarray,
        temperatures: Sequence[float],
        seed: int = 0,
        platform: str = "Reference",
        hot: int = HOT,
        settle: int = SETTLE,
        steps: int = STEPS,
        step_ps: float = STEP_PS,
        moves: Moves | None = None,
    ):
        import openmm as mm

        self.temperatures = np.asarray(temperatures, dtype=np.float64)
        self.seed, self.settle, self.steps, self.moves = seed, settle, steps, moves
        self.cycle, self.accepted, self.attempted = -hot - settle, 0, 0
        properties = {"Threads": "1", "DeterministicForces": "true"} if platform == "CPU" else {}
        self.moved = np.zeros(len(self.temperatures), dtype=int)
        self.contexts = []
        for k, start in enumerate(starts):
            number = sample_seed(seed, 0, k) % (2**31 - 1) + 1  # OpenMM takes 0 as "any"
            integrator = mm.LangevinMiddleIntegrator(self.temperatures[k], 1.0, step_ps)
            integrator.setRandomNumberSeed(number)
            context = mm.Context(system, integrator, mm.Platform.getPlatformByName(platform), properties)
            context.setPositions(start / NM)
            context.setVelocitiesToTemperature(self._temperature(k), number)
            self.contexts.append(context)

    def advance(self) -> tuple[np.ndarray, np.ndarray]:
        """Run one cycle; centred positions (T, N, 3) Angstrom and energies (T,) eV in the order of temperatures.

        Raises:
            CalculatorError: an energy is not finite.
        """
        from openmm import unit

        states, energies = [], np.zeros(len(self.contexts))
        for k, context in enumerate(self.contexts):
            context.getIntegrator().setTemperature(self._temperature(k))
            context.getIntegrator().step(self.steps)
            states.append(context.getState(getPositions=True, getVelocities=True, getEnergy=True))
            energies[k] = states[k].getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * KJ_MOL
        if not np.isfinite(energies).all():
            raise CalculatorError(
                f"energies {energies} eV in cycle {self.cycle}", where="replica exchange", remedy="try another --seed"
            )
        order = np.arange(len(energies))
        if self.cycle >= 0:
            uniform = generator(self.seed, 1, self.cycle).random(len(energies))
            order, accepted = exchange(energies, self.temperatures, self.cycle, uniform)
            self.accepted += accepted
            self.attempted += len(range(self.cycle % 2, len(energies) - 1, 2))
            for k in np.flatnonzero(order != np.arange(len(order))):
                state, scale = states[order[k]], np.sqrt(self.temperatures[k] / self.temperatures[order[k]])
                self.contexts[k].setPositions(state.getPositions(asNumpy=True))
                self.contexts[k].setVelocities(state.getVelocities(asNumpy=True) * scale)
        x = np.stack([states[k].getPositions(asNumpy=True).value_in_unit(unit.nanometer) for k in order]) * NM
        energies = energies[order]
        if self.moves is not None and self.cycle >= 0:
            x, energies, moved = self.moves(self.cycle, x, energies)
            self.moved += moved
            for k in np.flatnonzero(moved):
                self.contexts[k].setPositions(x[k] / NM)
                number = sample_seed(self.seed, 3, self.cycle, int(k))
                thermal_velocities(self.contexts[k], float(self.temperatures[k]), number)
        self.cycle += 1
        return x - x.mean(axis=1, keepdims=True), energies

    def state(self) -> dict[str, np.ndarray]:
        """All that `restore` needs to go on as if nothing had happened, on this machine and OpenMM version."""
        blobs = {f"replica{k}": _bytes(context.createCheckpoint()) for k, context in enumerate(self.contexts)}
        return blobs | {"counters": np.array([self.cycle, self.accepted, self.attempted]), "moved": self.moved}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Continue from `state`."""
        for k, context in enumerate(self.contexts):
            context.loadCheckpoint(state[f"replica{k}"].tobytes())
        self.cycle, self.accepted, self.attempted = state["counters"].tolist()
        self.moved = state["moved"].copy()

    def _temperature(self, k: int) -> float:
        return float(self.temperatures.max() if self.cycle < -self.settle else self.temperatures[k])


def thermal_velocities(context: Any, temperature: float, seed: int) -> None:
    """Draw velocities at the context's positions as its LangevinMiddle integrator has them between steps.

    OpenMM draws Maxwell's and sets them half a step h back, as the integrator needs them. But with a step of finite
    length velocities along a vibration of frequency w are slower than Maxwell's, by sqrt(1 - (h w)^2 / 4) where
    positions are right (Zhang et al., J. Phys. Chem. A 123 (2019) 6056), here to second order. Maxwell's would heat
    the stiffest vibrations by a tenth of a kT each, for a picosecond.
    """
    context.setVelocitiesToTemperature(temperature, seed % (2**31 - 1) + 1)
    state = context.getState(getPositions=True, getVelocities=True, getForces=True)
    x, v, force = (_array(part(asNumpy=True)) for part in (state.getPositions, state.getVelocities, state.getForces))
    system, h = context.getSystem(), context.getIntegrator().getStepSize()._value
    mass = np.array([system.getParticleMass(i)._value for i in range(len(x))])[:, None]
    drawn = v + h / 2 * force / mass
    small = 1e-4 / max(1e-12, np.abs(drawn).max())  # ps: displacements of at most 1e-4 nm
    forces = []
    for sign in (1, -1):
        context.setPositions(x + sign * small * drawn)
        forces.append(_array(context.getState(getForces=True).getForces(asNumpy=True)))
    context.setPositions(x)
    context.setVelocities(v + h * h / 8 * (forces[0] - forces[1]) / (2 * small) / mass)


def _array(quantity: Any) -> np.ndarray:
    return np.asarray(quantity._value)


def generate_md(
    sequence: str,
    path: str | Path,
    frames: int,
    cap: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    platform: str = "auto",
    hot: int = HOT,
    settle: int = SETTLE,
    save_seconds: float = SAVE_SECONDS,
    moves: Moves | None = None,
    named: Callable[[np.ndarray], np.ndarray] | None = None,
    cis: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Simulate one peptide and write `path` (format: molgen.data.md), a frame a ps at each temperature.

    What is done so far lies in `path` with the ending `STATE`, written every `save_seconds`; a run that finds it
    goes on from there. On the same machine the file has the same bytes as if it had not been stopped.

    Args:
        sequence, cap: as in `build_peptide`. frames: number of frames a temperature. temperatures: K.
        platform: "auto" takes Reference up to 60 atoms, CPU (one thread) above.
        hot, settle: ps before recording, see the module. moves: made every ps, at `temperatures`.
        named: start structures (n, N, 3) with equivalent atoms (the hydrogens of a CH2, the methyl groups of a valine)
            named alike, as `molgen.prose.layout.Layout.named` does; without it, and without moves, they are named by
            chance in every replica, and names change along the frames of a temperature.
        cis: one replica of four starts with a peptide bond cis that is not before proline.
        progress: called with ps done, total.

    Returns:
        Figures: sequence, atoms, frames, acceptance, moved (share of moves that changed the conformation, a
        temperature; None without), wrong_handedness (frames), platform, seconds, ns_per_day (of this process, all
        replicas together).

    Raises:
        InputError: unusable sequence, or a state of other settings. CalculatorError: the simulation blew up.
    """
    path = Path(path)
    peptide = build_peptide(sequence, cap)
    platform = platform if platform != "auto" else "Reference" if len(peptide) <= SMALL else "CPU"
    seed_here = sample_seed(seed, *sequence.encode())
    state_path = path.with_name(path.stem + STATE)
    starts = np.zeros((len(temperatures), len(peptide), 3))
    if not state_path.exists():
        for k, turned in enumerate(_forms(peptide, len(temperatures), seed_here, cis)):
            starts[k] = start_structure(peptide, sample_seed(seed_here, 2, k), turned)
        named = named or (None if moves is None else moves.named)
        starts = starts if named is None else named(starts)
    system, flow = heavy_hydrogens(peptide), "" if moves is None else moves.hash
    replicas = ReplicaExchange(system, starts, temperatures, seed_here, platform, hot, settle, moves=moves)
    x = np.zeros((len(temperatures), frames, len(peptide), 3), dtype=np.float32)
    e = np.zeros((len(temperatures), frames))
    kelvins = [float(t) for t in temperatures]
    settings = np.array([*map(str, (sequence, cap, frames, kelvins, seed, platform, hot, settle, flow, cis))])
    if state_path.exists():
        _restore(state_path, replicas, settings, x, e)
    begin = saved = time.monotonic()
    first, total, cost = replicas.cycle, frames + hot + settle, 0.0
    while replicas.cycle < frames:
        positions, energies = replicas.advance()
        if replicas.cycle > 0:
            x[:, replicas.cycle - 1], e[:, replicas.cycle - 1] = positions, energies
        progress(replicas.cycle + hot + settle, total)
        now = time.monotonic()
        if now - saved > max(save_seconds, 20 * cost):  # long runs have large states
            _save(state_path, replicas, settings, x, e)
            saved = time.monotonic()
            cost = saved - now
    seconds = time.monotonic() - begin
    acceptance = replicas.accepted / max(1, replicas.attempted)
    save_md(path, MDSet(sequence, cap, replicas.temperatures, x, e, peptide.labels, peptide.bonds, acceptance, flow))
    state_path.unlink(missing_ok=True)
    run = (replicas.cycle - first) * len(temperatures) * replicas.steps * STEP_PS / 1000
    return {
        "sequence": sequence,
        "atoms": len(peptide),
        "frames": frames,
        "acceptance": round(acceptance, 4),
        "moved": None if moves is None else (replicas.moved / frames).round(4).tolist(),
        "wrong_handedness": int(wrong_chirality(peptide, x).sum()),
        "platform": platform,
        "seconds": round(seconds, 1),
        "ns_per_day": round(run / max(seconds, 1e-9) * 86400),
    }


def _forms(peptide: Peptide, replicas: int, seed: int, cis: bool) -> np.ndarray:
    """(replicas, K) which peptide bonds start cis: those before proline in every second replica; with `cis`, also one
    of the others in replicas 2, 6, 10, ..., drawn for each."""
    proline = before_proline(peptide)
    turned = np.outer(np.arange(replicas) % 2 == 1, proline)
    for k in range(2, replicas if cis and not proline.all() else 0, 4):
        turned[k, generator(seed, 4, k).choice(np.flatnonzero(~proline))] = True
    return turned


def heavy_hydrogens(peptide: Peptide) -> Any:
    """The peptide's System with hydrogens of 4 amu, taken from their heavy atoms, and its centre of mass at rest."""
    import openmm as mm
    from openmm import unit

    system = mm.XmlSerializer.deserialize(mm.XmlSerializer.serialize(peptide.system))
    for i, j in peptide.bonds.tolist():
        for hydrogen, heavy in ((i, j), (j, i)):
            if peptide.numbers[hydrogen] == 1 and peptide.numbers[heavy] > 1:
                gain = HYDROGEN_MASS - system.getParticleMass(hydrogen).value_in_unit(unit.dalton)
                system.setParticleMass(hydrogen, HYDROGEN_MASS)
                system.setParticleMass(heavy, system.getParticleMass(heavy).value_in_unit(unit.dalton) - gain)
    system.addForce(mm.CMMotionRemover())
    return system


def _save(path: Path, replicas: ReplicaExchange, settings: np.ndarray, x: np.ndarray, e: np.ndarray) -> None:
    done = max(0, replicas.cycle)
    arrays = {"settings": settings, "x": x[:, :done], "e": e[:, :done], **replicas.state()}
    write_npz(path, arrays, compressed=False)


def _restore(path: Path, replicas: ReplicaExchange, settings: np.ndarray, x: np.ndarray, e: np.ndarray) -> None:
    import openmm as mm

    remedy = "remove it: the sequence starts afresh"
    state = read_npz(path, ("settings", "x", "e"), expected="the state of a run that is not finished", remedy=remedy)
    if state["settings"].tolist() != settings.tolist():
        raise InputError(
            f"the unfinished run had {', '.join(state['settings'].tolist())}",
            where=str(path),
            expected=", ".join(settings.tolist()),
            remedy="repeat its settings, or remove the file",
        )
    try:
        replicas.restore(state)
        done = max(0, replicas.cycle)
        x[:, :done], e[:, :done] = state["x"], state["e"]
    except (ValueError, KeyError, mm.OpenMMException) as error:
        raise InputError(f"not a readable state ({error})", where=str(path), remedy=remedy) from error


def _bytes(checkpoint: bytes) -> np.ndarray:
    return np.frombuffer(checkpoint, dtype=np.uint8)
