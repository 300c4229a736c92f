"""Reference ensembles of peptides as the repository keeps them: torsions and energies of two runs of `molgen data md`.

    python benchmarks/references.py SEQ... --minutes 60 --workers 2 --seed 2

makes those in `benchmarks/references` longer by the clock (a fair share of it each), two runs a sequence; with --out
DIR what it found lies in DIR instead, for `--join DIR` where the repository is. `SEQ.npz` holds, for run k of 0 and 1:

    angles_k (F, A)    int16 in units of pi / 32767: phi, psi, chi as `molgen.prose.evaluate.torsions` orders them
    energies_k (F,)    float32, kJ/mol
    seeds_k (S,)       seeds of the simulations it consists of
    flow_k (S,)        hash of the weights whose proposals were moves of each, "" without
    temperature ()     K
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from molgen.data.md import SAME_TEMPERATURE, TEMPERATURES, MDSet, load_md
from molgen.data.peptide import Peptide, build_peptide
from molgen.data.remd import generate_md
from molgen.errors import InputError
from molgen.npz import read_npz, write_npz
from molgen.prose.evaluate import Conformations, Torsions, torsions
from molgen.prose.weights import load_flow
from molgen.units import KJ_MOL
from molgen.workflows.md import moves_of

FOLDER = Path(__file__).resolve().parent / "references"
UNIT = np.pi / 32767
RUNS = (0, 1)
_KEYS = ("temperature", *(f"{name}_{k}" for k in RUNS for name in ("angles", "energies", "flow", "seeds")))
_WHAT = {"expected": "a reference of this folder", "remedy": "check it out again"}
LONGEST = 20_000  # ps: more than any clock here allows


def save(runs: list[MDSet], temperature: float, seeds: tuple[int, int] = RUNS, folder: Path = FOLDER) -> Path:
    """Write the frames of two runs of one peptide at `temperature`, of simulations of `seeds`."""
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
        }
    return write_npz(folder / f"{runs[0].sequence}.npz", arrays)


def join(more: Path, folder: Path = FOLDER) -> Path:
    """Append the runs of a file made elsewhere to those of its peptide.

    Raises:
        InputError: another temperature, or seeds that are in already.
    """
    path = folder / more.name
    new = read_npz(more, _KEYS, **_WHAT)
    if path.exists():
        old = read_npz(path, _KEYS, **_WHAT)
        used, ours = ({int(s) for k in RUNS for s in part[f"seeds_{k}"]} for part in (old, new))
        if again := sorted(used & ours):
            raise InputError(f"simulations of seeds {again} are in already", where=str(more), remedy="another --seed")
        if abs(float(new["temperature"] - old["temperature"])) > SAME_TEMPERATURE:
            raise InputError(f"frames at {new['temperature']} K", where=str(more), expected=f"{old['temperature']} K")
        for k in RUNS:
            for name in ("angles", "energies", "flow", "seeds"):
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
    with contextlib.suppress(_Over):
        generate_md(sequence, path, LONGEST, seed=seed, moves=moves, save_seconds=5, progress=watch)
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


def load(peptide: Peptide, temperature: float) -> tuple[Conformations, Conformations] | None:
    """The two runs of a peptide, None where there is no file or one of another temperature."""
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
    return parts[0], parts[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sequences", nargs="*")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=2, help="of the first run; the second has the next")
    parser.add_argument("--weights", default="prose", help="their proposals are moves")
    parser.add_argument("--states", type=Path, help="folder of simulations that were stopped: they go on")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--join", type=Path, nargs="*", default=[], help="folders of files made with --out")
    args = parser.parse_args()
    flow = load_flow(args.weights).hash
    seconds = 60 * args.minutes * min(1.0, args.workers / max(1, len(args.sequences) * len(RUNS)))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.states or Path(temporary)
        tasks = [(s, args.seed + k, args.weights, scratch, seconds) for s in args.sequences for k in RUNS]
        with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
            paths = pool.map(_longer, tasks, chunksize=1)
        made = Path(temporary)
        for sequence, pair in zip(args.sequences, zip(paths[::2], paths[1::2], strict=True), strict=True):
            runs = [run for path in pair if (run := _frames(sequence, path, flow)) is not None]
            print(sequence, *(run.energies.shape[1] for run in runs), "frames", flush=True)
            if len(runs) < len(RUNS):
                print(f"{sequence}: nothing recorded in {seconds:.0f} s a run; give more --minutes")
                continue
            join(save(runs, TEMPERATURES[0], (args.seed, args.seed + 1), made), args.out)
    for more in (file for folder in args.join for file in sorted(folder.glob("*.npz"))):
        print(join(more))


if __name__ == "__main__":
    main()
