"""Saddle searches on a cheaper level for the reactions of a set, in worker processes: `molgen data searches SET.npz`.

What they pass is the training data of `molgen train correction`. The file holds points, not
reactions; point k has the atoms `ptr[k]:ptr[k+1]`:

    index (K,)         row of the reaction in the set
    kind (K,)          "guess": where the search began; "path": a step of it; "saddle": its converged end; "near": about
                       the set's transition state, not of a search
    start (K,)         what the search began from: "tsgen", a guess of TS-GEN; "sqrt", the sqrt-distance guess
    ptr (K+1,)         offsets into the atom arrays
    x, gradient (A, 3) Angstrom, eV/Angstrom; the gradient of a saddle is zero
    level, source_sha256  calculator of the gradients; digest of the set
    row, outcome (S,)  of every search done, also of those without a point: row of its reaction, and how it ended
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molgen.data.reactions import load_npz, read_column
from molgen.files import sha256
from molgen.npz import write_npz
from molgen.pool import WorkerPool
from molgen.potentials.ase import level_name
from molgen.rng import generator
from molgen.run import Run
from molgen.tsgen import load_model
from molgen.words import counted
from molgen.workflows.journal import JOURNAL, Journal, carry_out
from molgen.workflows.reaction_tools import BROKEN, WORKER_DIED, refuse_all_failed
from molgen.workflows.relevel import require_transition_states, rows_of
from molgen.workflows.search_attempt import OVERLAPPING, Searches, SearchPlan

SEARCHES = "searches.npz"
_LOST = {"outcome": WORKER_DIED, "points": [], "near_lost": 0, "calls": {}, "seconds": 0.0}


def search_plan(
    source: Path,
    *,
    split: str | None = None,
    count: int | None = None,
    calculator: str = "gfn2",
    calculator_kwargs: Mapping[str, Any] | None = None,
    weights: str = "tsgen",
    seed: int = 0,
) -> tuple[SearchPlan, dict[str, Any]]:
    """The plan of a run, in an order drawn from `seed`, and the settings that decide each record.

    Args:
        split: as of :func:`molgen.workflows.relevel.rows_of`. count: only the first so many of the order drawn.

    Raises:
        InputError: not an npz of reactions, no such split, or a reaction without transition state.
    """
    splits = read_column(source, "split").astype(str).tolist()
    rows = rows_of(source, splits, split)
    rows = [rows[k] for k in generator(seed).permutation(len(rows))[:count]]
    reactions = load_npz(source)
    require_transition_states(source, rows, reactions)
    plan = SearchPlan(
        {row: reactions[row] for row in rows}, {row: splits[row] for row in rows}, calculator=calculator,
        calculator_kwargs=dict(calculator_kwargs or {}), weights=weights, seed=seed,
    )  # fmt: skip
    settings = {
        "source": str(source), "files": {str(source): sha256(source.read_bytes())}, "calculator": calculator,
        "calculator_kwargs": plan.calculator_kwargs, "weights": load_model(weights).hash,
    }  # fmt: skip
    return plan, settings


def search_all(
    plan: SearchPlan,
    run: Run,
    *,
    digest: str,
    seconds: float | None = None,
    workers: int | None = None,
    work: Callable[[SearchPlan], Callable[[int], dict[str, Any]]] = Searches,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Carry out the searches of `plan`; the points end up in `run.directory/searches.npz` (see the module).

    Every finished search is in the journal (`attempts.jsonl`): killed anywhere and resumed, a run gives the same file
    as one that was not, whatever the number of workers. What an earlier part of the run has done stays, also where
    `plan` asks for less.

    Args:
        digest: SHA-256 of the source set. seconds: begin no more searches after so many of this call.
        workers: processes, default one a core. work: makes the callable that does a search, in each worker.

    Returns:
        the figures of the summary.

    Raises:
        InputError: no worker, or a damaged journal. CalculatorError: it failed on every reaction.
    """
    pool = WorkerPool(partial(work, plan), workers, "--workers")
    journal = Journal(run.path(JOURNAL), key="index")
    journal.open()
    begin = time.monotonic()

    def records() -> list[dict[str, Any]]:
        return [journal.finished[row] for row in sorted(journal.finished)]

    asked = len({*plan.reactions, *journal.finished})

    def lost(row: int) -> dict[str, Any]:
        return {**_LOST, "index": row, "split": plan.splits[row]}

    def refuse_broken(least: int) -> None:
        asked_it = [r for r in journal.finished.values() if any(r["calls"].values()) or r["outcome"] != OVERLAPPING]
        failed = [r for r in asked_it if "cause" in r and not r["points"]]
        refuse_all_failed(failed, len(asked_it), plan.calculator, least)

    def say() -> None:
        done, rate = len(journal.finished), 3600 * journal.fresh / max(time.monotonic() - begin, 1e-6)
        refuse_broken(least=min(BROKEN, asked))
        progress(f"{done} of {counted(asked, 'search')}; {rate:.0f} an hour")

    def publish() -> None:
        save_points(run.path(SEARCHES), records(), level_name(plan.calculator, plan.calculator_kwargs), digest)

    carry_out(pool, plan.reactions, journal, lost=lost, progress=say, publish=publish, seconds=seconds)
    done = records()
    outcomes = Counter(record["outcome"] for record in done)
    refuse_broken(least=1)
    calls: Counter[str] = Counter()
    for record in done:
        calls.update(record["calls"])
    return {
        "searches": len(done),
        "asked": asked,
        "converged": outcomes["converged"],
        "points": sum(len(record["points"]) for record in done),
        "near_lost": sum(record["near_lost"] for record in done),
        "seconds_per_search": round(sum(r["seconds"] for r in done) / max(len(done), 1), 3),
        "energy_calls": calls.total(),
        "calls_by_stage": dict(calls),
        "rejections": {name: number for name, number in outcomes.most_common() if name != "converged"},
    }


def save_points(path: Path, records: Sequence[Mapping[str, Any]], level: str, digest: str) -> None:
    """Write the points of `records`; the file appears whole or not at all."""
    points = [(record, point) for record in records for point in record["points"]]
    arrays = {
        "index": np.array([record["index"] for record, _ in points], dtype=np.int64),
        "kind": np.array([point["kind"] for _, point in points], dtype=str),
        "start": np.array([record["start"]["guess"] for record, _ in points], dtype=str),
        "ptr": np.cumsum([0, *(len(point["x"]) for _, point in points)], dtype=np.int64),
        "level": np.array(level),
        "source_sha256": np.array(digest),
        "row": np.array([record["index"] for record in records], dtype=np.int64),
        "outcome": np.array([record["outcome"] for record in records], dtype=str),
    }
    for key, short in (("x", "x"), ("gradient", "g")):
        rows = [np.asarray(point[short], dtype=np.float32) for _, point in points]
        arrays[key] = np.concatenate([np.zeros((0, 3), np.float32), *rows])
    write_npz(path, arrays)
