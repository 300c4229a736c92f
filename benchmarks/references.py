"""Reference ensembles of peptides as the repository keeps them: torsions and energies of two runs of `molgen data md`.

    python benchmarks/references.py SEQ... --minutes 60 --workers 2 --seed 2

makes those in `benchmarks/references` longer by the clock (a fair share of it each), two runs a sequence; with --out
DIR what it found lies in DIR instead, for `--join DIR` where the repository is. With --frames N every frame is
continued by Langevin dynamics until there are N: a frame each half ps, which keeps the distribution, shows more of the
inside of the basins, and nothing new of how much they weigh. --simulations takes finished ones of `prose.py --part
reference`, in place of what the folder has. `SEQ.npz` holds, for run k of 0 and 1:

    angles_k (F, A)    int16 in units of pi / 32767: phi, psi, chi as `molgen.prose.evaluate.torsions` orders them
    energies_k (F,)    float32, kJ/mol
    seeds_k (S,)       seeds of the simulations it consists of
    flow_k (S,)        hash of the weights whose proposals were moves of each, "" without
    continued_k (S,)   frames that follow each frame of the simulation, half a ps apart, before its next
    temperature ()     K
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from molgen.data.md import SAME_TEMPERATURE, TEMPERATURES, MDSet, load_md
from molgen.data.peptide import Peptide, build_peptide
from molgen.data.remd import STEPS, ReplicaExchange, generate_md, heavy_hydrogens, thermal_velocities
from molgen.errors import CalculatorError, InputError
from molgen.npz import read_npz, write_npz
from molgen.potentials.openmm import SMALL
from molgen.prose.evaluate import LAG, Conformations, Torsions, torsions
from molgen.prose.weights import load_flow
from molgen.rng import sample_seed
from molgen.units import KJ_MOL, NM
from molgen.workflows.md import moves_of

FOLDER = Path(__file__).resolve().parent / "references"
UNIT = np.pi / 32767
RUNS = (0, 1)
_KEYS = ("temperature", *(f"{name}_{k}" for k in RUNS for name in ("angles", "energies", "flow", "seeds", "continued")))
_WHAT = {"expected": "a reference of this folder", "remedy": "check it out again"}
LONGEST = 20_000  # ps: more than any clock here allows
HALF_PS = STEPS // 2


def save(
    runs: list[MDSet],
    temperature: float,
    seeds: tuple[int, int] = RUNS,
    folder: Path = FOLDER,
    continued: Sequence[int] = (0, 0),
) -> Path:
    """Write the frames of two runs of one peptide at `temperature`, of simulations of `seeds` that were `continued`."""
    arrays: dict[str, np.ndarray] = {"temperature": np.array(temperature)}
    for k, md in zip(RUNS, runs, strict=True):
        at = md.at(temperature)
        found = torsions(md.peptide, md.positions[at])
        angles = np.concatenate([found.phi, found.psi, found.chi], axis=1)
        arrays |= {
            f"angles_{k}": np.rint(angles / UNIT).astype(np.int16),
            f"energies_{k}": (md.energies[at] / KJ_MOL).astype(np.float32),
            f"flow_{k}": np.array([md.flow]),
            f"seeds_{k}": np.array([seeds[k]]),
            f"continued_{k}": np.array([continued[k]]),
        }
    return write_npz(folder / f"{runs[0].sequence}.npz", arrays)


def unused(path: Path, seeds: set[int]) -> None:
    """Raises InputError where a reference has simulations of these seeds."""
    if path.exists():
        arrays = read_npz(path, _KEYS, **_WHAT)
        if again := sorted(seeds & {int(s) for k in RUNS for s in arrays[f"seeds_{k}"]}):
            raise InputError(f"simulations of seeds {again} are in already", where=str(path), remedy="another --seed")


def join(more: Path, folder: Path = FOLDER) -> Path:
    """Append the runs of a file made elsewhere to those of its peptide.

    Raises:
        InputError: another temperature, or seeds that are in already.
    """
    path = folder / more.name
    new = read_npz(more, _KEYS, **_WHAT)
    unused(path, {int(s) for k in RUNS for s in new[f"seeds_{k}"]})
    if path.exists():
        old = read_npz(path, _KEYS, **_WHAT)
        if abs(float(new["temperature"] - old["temperature"])) > SAME_TEMPERATURE:
            raise InputError(f"frames at {new['temperature']} K", where=str(more), expected=f"{old['temperature']} K")
        for k in RUNS:
            for name in ("angles", "energies", "flow", "seeds", "continued"):
                new[f"{name}_{k}"] = np.concatenate([old[f"{name}_{k}"], new[f"{name}_{k}"]])
    return write_npz(path, new)


class _Over(Exception):
    """The time is."""


def _longer(task: tuple[str, int, str, Path, float]) -> Path:
    """Simulate for a number of seconds, in a process of its own; the file, which may still be a state beside it."""
    sequence, seed, weights, folder, seconds = task
    torch.set_num_threads(1)
    end = time.time() + seconds

    def watch(done: int, total: int) -> None:
        if time.time() > end:
            raise _Over

    path = folder / f"{sequence}-{seed}.npz"
    moves = moves_of(load_flow(weights), sequence, None, TEMPERATURES, seed)
    try:
        generate_md(sequence, path, LONGEST, seed=seed, moves=moves, save_seconds=5, progress=watch)
    except _Over:
        pass
    except CalculatorError as error:  # no loss to the others
        print(f"{sequence}, seed {seed}: {error}", flush=True)
    return path


def _frames(sequence: str, path: Path, flow: str) -> MDSet | None:
    """What was recorded, None if nothing."""
    if path.exists():
        return load_md(path)
    state = path.with_suffix(".state.npz")
    if not state.exists():
        return None
    arrays = read_npz(state, ("x", "e"), expected="the state of a simulation", remedy="remove it")
    if not arrays["e"].size:
        return None
    p = build_peptide(sequence)
    return MDSet(sequence, None, np.array(TEMPERATURES), arrays["x"], arrays["e"], p.labels, p.bonds, np.nan, flow)


def continue_frames(md: MDSet, temperature: float, times: int, seed: int) -> MDSet:
    """Each frame at `temperature`, followed by `times` frames of Langevin dynamics from it, half a ps apart."""
    at = md.at(temperature)
    frames, energies = md.positions[at], md.energies[at]
    system, platform = heavy_hydrogens(md.peptide), "Reference" if len(md.peptide) <= SMALL else "CPU"
    x = np.repeat(frames[:, None], times + 1, axis=1)
    e = np.repeat(energies[:, None], times + 1, axis=1)
    if times:
        chain = ReplicaExchange(system, frames[:1], (temperature,), seed, platform, hot=0, settle=0, steps=HALF_PS)
        for f, frame in enumerate(frames):
            chain.contexts[0].setPositions(frame / NM)
            thermal_velocities(chain.contexts[0], temperature, sample_seed(seed, 5, f))
            for k in range(times):
                x[f, k + 1], e[f, k + 1] = (part[0] for part in chain.advance())
    shape = (1, -1, *frames.shape[1:])
    return replace(md, temperatures=np.array([temperature]), positions=x.reshape(shape), energies=e.reshape(1, -1))


def _continued(task: tuple[MDSet, int, int]) -> MDSet:
    """`continue_frames` at the lowest temperature, in a process of its own."""
    md, times, seed = task
    torch.set_num_threads(1)
    return continue_frames(md, TEMPERATURES[0], times, seed)


@dataclass(frozen=True)
class Reference:
    """The two runs of a peptide, and how many of their frames are 10 ps."""

    parts: tuple[Conformations, Conformations]
    lag: int


def load(peptide: Peptide, temperature: float) -> Reference | None:
    """The reference of a peptide, None where there is no file or one of another temperature."""
    path = FOLDER / f"{peptide.sequence}.npz"
    if not path.exists():
        return None
    arrays = read_npz(path, _KEYS, **_WHAT)
    if abs(float(arrays["temperature"]) - temperature) > SAME_TEMPERATURE:
        return None
    names = torsions(peptide, np.random.default_rng(0).normal(size=(1, len(peptide), 3)))
    ends = np.cumsum([names.phi.shape[1], names.psi.shape[1]])
    parts = []
    for k in RUNS:
        phi, psi, chi = np.split(arrays[f"angles_{k}"] * UNIT, ends, axis=1)
        found = Torsions(phi, psi, chi, names.phi_residue, names.psi_residue)
        parts.append(Conformations(found, arrays[f"energies_{k}"] * KJ_MOL))
    frames_a_ps = 1 + max(int(arrays[f"continued_{k}"].max()) for k in RUNS)
    return Reference((parts[0], parts[1]), LAG * frames_a_ps)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="*")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2, help="of the first run; the second has the next")
    parser.add_argument("--weights", default="prose", help="their proposals are moves")
    parser.add_argument("--states", type=Path, help="folder of simulations that were stopped: they go on")
    parser.add_argument("--simulations", type=Path, help="folder of SEQ_0.npz and SEQ_1.npz to take; seeds 0 and 1")
    parser.add_argument("--frames", type=int, default=0, help="a run at least, by continuing each frame")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--join", type=Path, nargs="*", default=[], help="folders of files made with --out")
    args = parser.parse_args()
    flow = load_flow(args.weights).hash
    seconds = 60 * args.minutes * min(1.0, args.workers / max(1, len(args.sequences) * len(RUNS)))
    seeds = RUNS if args.simulations else (args.seed, args.seed + 1)
    if not args.simulations:
        for sequence in args.sequences:
            unused(args.out / f"{sequence}.npz", set(seeds))
    with (
        tempfile.TemporaryDirectory() as temporary,
        multiprocessing.get_context("spawn").Pool(args.workers) as pool,
    ):
        scratch = args.states or Path(temporary)
        if args.simulations:
            paths = [args.simulations / f"{s}_{k}.npz" for s in args.sequences for k in RUNS]
        else:
            tasks = [(s, seed, args.weights, scratch, seconds) for s in args.sequences for seed in seeds]
            paths = pool.map(_longer, tasks, chunksize=1)
        for sequence, pair in zip(args.sequences, zip(paths[::2], paths[1::2], strict=True), strict=True):
            runs = [run for path in pair if (run := _frames(sequence, path, flow)) is not None]
            if len(runs) < len(RUNS):
                print(f"{sequence}: nothing recorded in {seconds:.0f} s a run; give more --minutes")
                continue
            lengths = [run.energies.shape[1] for run in runs]
            times = [max(0, -(-args.frames // length) - 1) for length in lengths]
            runs = pool.map(_continued, list(zip(runs, times, seeds, strict=True)))
            print(sequence, *lengths, "frames, continued", *times, "times", flush=True)
            file = save(runs, TEMPERATURES[0], seeds, args.out if args.simulations else Path(temporary), times)
            if not args.simulations:
                join(file, args.out)
    for more in (file for folder in args.join for file in sorted(folder.glob("*.npz"))):
        print(join(more))


if __name__ == "__main__":
    main()
