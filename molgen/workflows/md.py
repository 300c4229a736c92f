"""Molecular dynamics of many peptides in worker processes: `molgen data md`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from molgen.data.md import TEMPERATURES, is_held_out, load_md, read_sequences
from molgen.data.peptide import build_peptide, plain_sequence
from molgen.data.remd import HOT, SETTLE, generate_md
from molgen.errors import CalculatorError, InputError, MolgenError
from molgen.pool import Died, WorkerPool
from molgen.prose.layout import Layout
from molgen.prose.moves import FlowMoves
from molgen.prose.weights import Proposal, load_flow
from molgen.rng import sample_seed
from molgen.run import Run

MOVES = 1 << 16  # stream of the flow's moves; the simulations' own are letters


def check_sequences(sequences: Sequence[str], cap: str | None = None, exclude: str | Path | None = None) -> list[str]:
    """The sequences without repetitions.

    Args:
        exclude: list of sequences never to simulate, nor any that contains one of three or more residues.

    Raises:
        InputError: none, one that is no peptide, or excluded ones (names them).
    """
    found = list(dict.fromkeys(map(plain_sequence, sequences)))
    if not found:
        raise InputError("no sequences", where="SEQUENCES", expected="such as AA GY, or --file")
    for sequence in found:
        build_peptide(sequence, cap)
    held = read_sequences(exclude) if exclude is not None else ()
    refused = [sequence for sequence in found if is_held_out(sequence, held)]
    if refused:
        raise InputError(
            f"excluded: {', '.join(refused)}",
            where=str(exclude),
            expected="sequences that are not in this list and contain no tri- or tetrapeptide of it",
            remedy="leave these out",
        )
    return found


def simulate(
    sequences: Sequence[str],
    run: Run,
    *,
    frames: int,
    cap: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    platform: str = "auto",
    flow: str | Path | Proposal | None = None,
    cis: bool = False,
    workers: int = 1,
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """T-REMD of every sequence, `run.directory/SEQ.npz` each; those that are there already are kept.

    A sequence that fails, or whose worker dies, costs nothing but itself. On Ctrl-C the last states stay on disk.

    Args:
        sequences: see `check_sequences`. run: its seed is the seed; each sequence has a stream of its own, so neither
            order nor number of workers matters. frames: a temperature, one a ps.
        flow: weights whose proposals are moves of the simulation. cis: see `generate_md`.
        workers: processes of one thread.
        log: called with lines for people. progress: called with (ps done, ps in all), a replica.

    Returns:
        Figures of `generate_md` a sequence, in order; a failed one has "error" instead.

    Raises:
        InputError: no worker, or temperatures beyond those of the flow. CheckpointError: no such weights.
        CalculatorError: every sequence failed.
    """
    done = dict.fromkeys(sequences, 0)

    def count(job: tuple[str], ps: int) -> None:
        done[job[0]] = ps
        progress(sum(done.values()), len(done) * (frames + HOT + SETTLE))

    options = {"frames": frames, "cap": cap, "temperatures": tuple(temperatures), "seed": run.seed}
    options |= {"platform": platform, "cis": cis}
    proposal = None if flow is None else flow_of(flow, temperatures)
    if proposal is not None:
        run.record(checkpoint_hash=proposal.hash)
    pool = WorkerPool(partial(_Simulation, run.directory, options, proposal), workers, "--workers", on_progress=count)
    results: dict[str, dict[str, Any]] = {}
    for sequence in sequences:
        path = run.path(f"{sequence}.npz")
        if path.exists():
            md = load_md(path)
            results[sequence] = {
                "sequence": sequence, "atoms": len(md.names), "frames": md.positions.shape[1],
                "acceptance": round(md.acceptance, 4), "moved": None, "kept": True,
            }  # fmt: skip
            done[sequence] = frames + HOT + SETTLE
        else:
            run.path(f"{sequence}.state.npz")
    waiting = [(sequence,) for sequence in sequences if sequence not in results]
    with closing(pool):
        for (sequence,), answer in pool.run(waiting):
            results[sequence] = {"sequence": sequence, "error": answer.reason} if isinstance(answer, Died) else answer
            run.results[:] = [results[s] for s in sequences if s in results]
            if "error" in results[sequence]:
                log(f"{sequence}: {results[sequence]['error']}")
    run.results[:] = [results[s] for s in sequences]
    if all("error" in result for result in run.results):
        raise CalculatorError(
            f"every sequence failed: {run.results[0]['error']}",
            where=str(run.directory),
            remedy="see the messages above",
        )
    return run.results


def flow_of(weights: str | Path | Proposal, temperatures: Sequence[float]) -> Proposal:
    """The flow of a simulation's moves, loaded unless it is already.

    Raises:
        CheckpointError: no such weights. InputError: a temperature that the flow was not trained on.
    """
    proposal = weights if isinstance(weights, Proposal) else load_flow(weights)
    low, high = proposal.config.get("temperatures", (0.0, float("inf")))
    if outside := [f"{t:g}" for t in temperatures if not low <= t <= high]:
        raise InputError(
            f"the flow does not know {', '.join(outside)} K",
            where="--temperatures",
            expected=f"{low:g} to {high:g} K with --flow",
        )
    return proposal


def moves_of(
    proposal: Proposal,
    sequence: str,
    cap: str | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    seed: int = 0,
    platform: str = "auto",
) -> FlowMoves:
    """The moves of one simulation (arguments as in `generate_md`)."""
    stream = sample_seed(seed, MOVES, *sequence.encode())
    return FlowMoves(proposal, build_peptide(sequence, cap), temperatures, stream, platform)


@dataclass(frozen=True)
class _Simulation:
    """A worker's job: the figures of one sequence, or the reason of its failure."""

    directory: Path
    options: dict[str, Any]
    proposal: Proposal | None

    def __call__(self, sequence: str, progress: Callable[[int], None]) -> dict[str, Any]:
        path = self.directory / f"{sequence}.npz"
        try:
            moves, named = None, Layout.of(build_peptide(sequence, self.options["cap"])).named
            if self.proposal is not None:
                kinds = (self.options[key] for key in ("cap", "temperatures", "seed", "platform"))
                moves = moves_of(self.proposal, sequence, *kinds)
            return generate_md(
                sequence, path, moves=moves, named=named, progress=lambda done, total: progress(done), **self.options
            )
        except MolgenError as error:
            reason = str(error)
        except Exception as error:  # OpenMM's own, such as "Particle coordinate is NaN"
            reason = f"{type(error).__name__}: {error}"
        return {"sequence": sequence, "error": reason}
