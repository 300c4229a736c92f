"""Molecular dynamics of many peptides in worker processes: `molgen data md`."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from molgen.data.md import TEMPERATURES, is_held_out, load_md, read_sequences
from molgen.data.peptide import build_peptide, plain_sequence
from molgen.data.remd import HOT, SETTLE, generate_md
from molgen.errors import CalculatorError, InputError, MolgenError
from molgen.run import Run

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy locks of OpenMM's and torch's threads


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
    workers: int = 1,
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """T-REMD of every sequence, `run.directory/SEQ.npz` each; those that are there already are kept.

    A sequence that fails, or whose worker dies, costs nothing but itself.

    Args:
        sequences: see `check_sequences`. run: its seed is the seed; each sequence has a stream of its own, so neither
            order nor number of workers matters. frames: a temperature, one a ps. workers: processes of one thread.
        log: called with lines for people. progress: called with (ps done, ps in all), a replica.

    Returns:
        Figures of `generate_md` a sequence, in order; a failed one has "error" instead.

    Raises:
        InputError: no worker. CalculatorError: every sequence failed.
    """
    if workers < 1:
        raise InputError(f"{workers} workers", where="--workers", expected="at least 1")
    results: dict[str, dict[str, Any]] = {}
    done = dict.fromkeys(sequences, 0)
    for sequence in sequences:
        path = run.path(f"{sequence}.npz")
        if path.exists():
            md = load_md(path)
            results[sequence] = {
                "sequence": sequence, "atoms": len(md.names), "frames": md.positions.shape[1],
                "acceptance": round(md.acceptance, 4), "kept": True,
            }  # fmt: skip
            done[sequence] = frames + HOT + SETTLE
        else:
            run.path(f"{sequence}.state.npz")
    options = {"frames": frames, "cap": cap, "temperatures": tuple(temperatures), "seed": run.seed}
    options["platform"] = platform
    waiting = deque(sequence for sequence in sequences if sequence not in results)
    busy: dict[Connection, tuple[_Worker, str]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker, sequence = _Worker(), waiting.popleft()
                worker.connection.send((sequence, str(run.directory / f"{sequence}.npz"), options))
                busy[worker.connection] = worker, sequence
            for connection in wait(list(busy)):
                worker, sequence = busy[connection]  # pyright: ignore[reportArgumentType]
                kind, content = worker.receive()
                if kind == "progress":
                    done[sequence] = content
                    progress(sum(done.values()), len(done) * (frames + HOT + SETTLE))
                    continue
                del busy[connection]  # pyright: ignore[reportArgumentType]
                worker.end()
                results[sequence] = content if kind == "done" else {"sequence": sequence, "error": content}
                run.results[:] = [results[s] for s in sequences if s in results]
                if kind == "failed":
                    log(f"{sequence}: {content}")
    finally:  # on Ctrl-C the workers' last states stay on disk
        for worker, _ in busy.values():
            worker.process.kill()
            worker.end()
    run.results[:] = [results[s] for s in sequences]
    if all("error" in result for result in run.results):
        raise CalculatorError(
            f"every sequence failed: {run.results[0]['error']}",
            where=str(run.directory),
            remedy="see the messages above",
        )
    return run.results


class _Worker:
    """A process for one sequence."""

    def __init__(self) -> None:
        self.connection, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # ours alone would keep the pipe open after the worker's death

    def receive(self) -> tuple[str, Any]:
        """What it says; a dead worker has failed."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            return "failed", f"worker process died ({how})"

    def end(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection) -> None:
    """A worker's life: one job in, progress and the figures (or the reason of a failure) out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        sequence, path, options = connection.recv()
        try:
            figures = generate_md(
                sequence, path, progress=lambda done, total: connection.send(("progress", done)), **options
            )
        except MolgenError as error:
            connection.send(("failed", str(error)))
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except Exception as error:  # OpenMM's own, such as "Particle coordinate is NaN"
            connection.send(("failed", f"{type(error).__name__}: {error}"))
        else:
            connection.send(("done", figures))
    except (EOFError, BrokenPipeError):
        return  # the parent is gone; the last state is on disk
