"""New reactions of molecules, attempt by attempt in worker processes: `molgen data reactions`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from molgen.data.exclusion import excluded_keys, split_spec
from molgen.data.reactions import read_column
from molgen.data.sources import all_molecules, training_split
from molgen.errors import InputError
from molgen.files import sha256
from molgen.pool import WorkerPool
from molgen.potentials.ase import level_name
from molgen.run import Run
from molgen.tsgen import load_model
from molgen.words import counted
from molgen.workflows.journal import JOURNAL, Journal, carry_out
from molgen.workflows.reaction_attempt import VERIFIED, Attempts, GuessKind, Plan
from molgen.workflows.reaction_set import ReactionSet
from molgen.workflows.reaction_tools import (
    BROKEN,
    NO_ANSWER,
    WORKER_DIED,
    Potentials,
    refuse_all_failed,
    require_described,
)

REACTIONS = "reactions.npz"
PATIENCE, PATIENCE_EACH = 200, 20  # attempts in a row without a new reaction: at least, and for each molecule
GUESSES: dict[str, tuple[GuessKind, ...]] = {"tsgen": ("tsgen",), "sqrt": ("sqrt",), "both": ("tsgen", "sqrt")}


def plan_of(
    sources: Sequence[Path],
    exclude: Sequence[str],
    *,
    calculator: str = "gfn2",
    calculator_kwargs: Mapping[str, Any] | None = None,
    guess: str = "both",
    weights: str = "tsgen",
    charge: int | None = None,
    spin: int | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda message: None,
) -> tuple[Plan, dict[str, Any]]:
    """The plan of a run, and the settings that decide its result (of files, their digests too).

    Of a source set with a training split, the other splits are excluded as well.

    Raises:
        InputError: unusable files or options; a molecule that the calculator cannot describe (names it).
    """
    if guess not in GUESSES:
        raise InputError(f"unknown guess {guess!r}", where="--guess", expected=", ".join(GUESSES))
    molecules = all_molecules(sources, charge, spin, log)
    implied = [
        f"{path}:{name}"
        for path in sources
        if Path(path).suffix.lower() == ".npz" and training_split(path)
        for name in sorted(set(read_column(path, "split").tolist()) - {"train"})
    ]
    keys = excluded_keys([*exclude, *implied])
    plan = Plan(molecules, keys, calculator, dict(calculator_kwargs or {}), GUESSES[guess], weights, seed)
    require_described(Potentials(calculator, plan.calculator_kwargs), molecules)
    model = load_model(weights).hash if "tsgen" in plan.guesses else None
    files = {str(path): sha256(Path(path).read_bytes()) for path in (*sources, *(split_spec(e)[0] for e in exclude))}
    settings = {
        "sources": [str(path) for path in sources], "exclude": list(exclude), "files": files, "calculator": calculator,
        "calculator_kwargs": plan.calculator_kwargs, "guess": guess, "weights": model, "charge": charge or 0,
        "spin": spin,
    }  # fmt: skip
    return plan, settings


def check_limits(attempts: int | None, count: int | None, seconds: float | None) -> None:
    """See that something ends a run.

    Raises:
        InputError: nothing does.
    """
    if attempts is None and count is None and seconds is None:
        raise InputError(
            "nothing says when to stop", where="--attempts, --count, --time-budget", expected="at least one of them"
        )


def find_reactions(
    plan: Plan,
    run: Run,
    *,
    attempts: int | None = None,
    count: int | None = None,
    seconds: float | None = None,
    workers: int | None = None,
    work: Callable[[Plan], Callable[[int], dict[str, Any]]] = Attempts,
    progress: Callable[[ReactionSearch], None] = lambda search: None,
) -> ReactionSearch:
    """Attempts 0, 1, 2, ... of `plan` until one of the limits; the reactions end up in `run.directory/reactions.npz`.

    Every finished attempt is in the journal (`attempts.jsonl`) before it counts, and counts in the order of its
    number: killed anywhere and resumed, a run of so many attempts gives the same file as one that was not, whatever
    the number of workers.

    Args:
        attempts, count, seconds: stop after so many attempts, reactions kept, or seconds of this call; at least one.
            With `count` alone also when nothing new comes any more (PATIENCE).
        workers: processes, default one a core. work: makes the callable that carries out an attempt, in each worker.
        progress: called after every attempt.

    Raises:
        InputError: no limit, no worker, or a damaged journal. CalculatorError: it failed on every attempt.
    """
    check_limits(attempts, count, seconds)
    pool = WorkerPool(partial(work, plan), workers, "--workers")
    patience = max(PATIENCE, PATIENCE_EACH * len(plan.molecules)) if attempts is None and seconds is None else None
    search = ReactionSearch(plan, run, count, patience)
    search.journal.open()
    search.take()

    def waiting() -> Iterator[int]:
        index = 0
        while (attempts is None or index < attempts) and not search.over:
            yield index
            index += 1

    def one_more() -> None:
        search.take()
        search.refuse_broken(least=min(BROKEN, max(3, len(plan.molecules))))
        if search.taken:  # attempts count in order, and a later one may end first
            progress(search)

    carry_out(pool, waiting(), search.journal, lost=_lost, progress=one_more, publish=search.publish, seconds=seconds)
    taken = (record for k, record in search.journal.finished.items() if k < search.taken)
    failed = [record for record in taken if record["outcome"] in NO_ANSWER]
    refuse_all_failed(failed, search.taken, plan.calculator)
    search.refuse_broken(least=1)
    return search


def _lost(index: int) -> dict[str, Any]:
    return {"attempt": index, "outcome": WORKER_DIED}


class ReactionSearch:
    """Where a run stands: attempts finished (in the journal), and of these, taken in order, the reactions found.

    Args:
        count: reactions to be kept. patience: attempts in a row that keep none, after which it ends. None: no limit.

    Attributes:
        found: the reactions. journal: of all attempts. taken: attempts that count, 0 to taken - 1.
        idle: how many of these since the last reaction kept. calls: gradient calls of these, by stage.
        barren: records of those whose molecule itself the calculator failed on. asked: how many have asked it at all.
    """

    def __init__(self, plan: Plan, run: Run, count: int | None = None, patience: int | None = None):
        self.plan, self.run = plan, run
        self.count, self.patience = count, patience
        self.found = ReactionSet(level_name(plan.calculator, plan.calculator_kwargs), plan.excluded)
        self.taken, self.idle, self.calls = 0, 0, Counter()
        self.barren: list[dict[str, Any]] = []
        self.asked = 0
        self.busy_seconds = 0.0
        self.journal = Journal(run.path(JOURNAL), stamp={"seed": plan.seed})
        self._begin = time.monotonic()

    def take(self) -> None:
        """Let finished attempts count, in order, up to the first unfinished one or the end of the search."""
        while self.taken in self.journal.finished and not self.over:
            record = self.journal.finished[self.taken]
            self.idle = 0 if self.found.add(record) in VERIFIED else self.idle + 1
            self.calls.update(record.get("calls", {}))
            calls, unanswered = record.get("calls", {}), record["outcome"] in NO_ANSWER
            self.barren += [record] if unanswered and sum(calls.values()) <= 1 else []
            self.asked += unanswered or bool(calls)
            self.busy_seconds += record.get("seconds", 0.0)
            self.taken += 1

    def refuse_broken(self, least: int) -> None:
        """See that the calculator knows any of the molecules.

        Raises:
            CalculatorError: it failed on the molecule itself in all attempts that asked it, `least` or more.
        """
        refuse_all_failed(self.barren, self.asked, self.plan.calculator, least)

    @property
    def exhausted(self) -> bool:
        """Whether nothing new has come for as long as `patience`."""
        return self.patience is not None and self.idle >= self.patience

    @property
    def over(self) -> bool:
        """Whether enough reactions are found, or no more are to be expected."""
        return self.exhausted or (self.count is not None and len(self.found) >= self.count)

    def publish(self) -> None:
        """Write the npz and the figures, of all attempts that count."""
        self.take()
        self.found.write(self.run.path(REACTIONS))
        self.run.record(**self.figures())

    @property
    def per_hour(self) -> float:
        """Reactions kept an hour of one worker's time."""
        return 3600 * len(self.found) / self.busy_seconds if self.busy_seconds else 0.0

    def figures(self) -> dict[str, Any]:
        """What the summary says: yield, rate, costs."""
        outcomes = dict(self.found.outcomes.most_common())
        verified = sum(outcomes.get(name, 0) for name in (*VERIFIED, "duplicate"))
        return {
            "attempts": self.taken,
            "verified": verified,
            "kept": len(self.found),
            "reactions": self.found.reactions,
            "intended": outcomes.get("intended", 0),
            "per_worker_hour": round(self.per_hour, 1),
            "energy_calls": self.calls.total(),
            "calls_by_stage": dict(self.calls),
            "rejections": {name: n for name, n in outcomes.items() if name not in VERIFIED},
        }

    def line(self) -> str:
        """Rate and yield, for the person watching."""
        elapsed = max(time.monotonic() - self._begin, 1e-6)
        share = len(self.found) / max(self.taken, 1)
        rate = 3600 * share * self.journal.fresh / elapsed
        found = counted(len(self.found), "transition state")
        return f"{counted(self.taken, 'attempt')}, {found} ({share:.0%}), {rate:.0f} an hour"
