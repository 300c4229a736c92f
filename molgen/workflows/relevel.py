"""A set of reactions at another level, row by row in worker processes: `molgen data reactions SET.npz --relevel`.

The twin has one record for each reaction chosen of the source set, failures included, in the source's order:

    index          row of the source set; `id`, `split`, z and (where there) smiles are the source's
    r, ts, p       re-optimised, each from its own geometry in the source; where a search failed, where it ended; the
                   source's own geometry where the calculator failed there
    verdict        "intended": a first-order saddle that joins R and P; "half": one of them; "unintended": neither;
                   "not found": the search did not converge, or not to a first-order saddle. reason: in words
    verified       the verdict is "intended", and R and P are still the molecules of the source. `molgen train ts` and
                   `molgen evaluate ts` use these rows and no others
    energies (3)   of R, TS, P, eV; fmax (3) the largest force left, eV/Angstrom; NaN where unknown
    barrier_kcal   TS over R, kcal/mol, of verified rows, else NaN
    imaginary_cm   lowest frequency at ts, 1/cm, negative if imaginary; NaN where the search did not converge
    rmsd           between ts here and in the source, Angstrom
    level          the calculator; source_level: of the source set, "" if unknown

`molgen.data.pairs.load_pairs` reads source and twin together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from molgen.data.reactions import EMPTY, Reaction, load_npz, read_column, refuse_published, save_npz
from molgen.errors import InputError
from molgen.files import sha256
from molgen.geometry.bonds import bond_graph, bonding_differences, fragments
from molgen.pool import WorkerPool
from molgen.potentials.ase import calculator_from_spec, level_name
from molgen.run import Run
from molgen.units import KCAL_MOL
from molgen.words import counted
from molgen.workflows.journal import JOURNAL, Journal, carry_out
from molgen.workflows.reaction_tools import BROKEN, NO_ANSWER, WORKER_DIED, refuse_all_failed
from molgen.workflows.reactions import REACTIONS
from molgen.workflows.relevel_attempt import LEVEL_VERDICTS, SIDES, LevelPlan, Releveling, unfound

DEFAULT_SPLITS = ("train", "val")


def level_plan(
    sources: Sequence[Path],
    *,
    split: str | None = None,
    count: int | None = None,
    calculator: str = "gfn2",
    calculator_kwargs: Mapping[str, Any] | None = None,
) -> tuple[LevelPlan, dict[str, Any]]:
    """The plan of a run, and the settings that decide each record (of the source, its digest too).

    Args:
        sources: the one source set. split: names of splits, comma-separated, or "all"; default train and val, as far
            as the set has them. count: only the first so many of these.

    Raises:
        InputError: not one set, no such split, a reaction without transition state, or a calculator that cannot
            describe the first molecule.
    """
    for path in sources:
        refuse_published(Path(path))
    if len(sources) != 1 or Path(sources[0]).suffix.lower() != ".npz":
        raise InputError(
            f"{' '.join(map(str, sources)) or 'nothing'} given",
            where="--relevel",
            expected="one set of reactions",
            remedy="molgen data reactions set.npz --relevel --out twin",
        )
    path = Path(sources[0])
    splits, smiles = (read_column(path, key).astype(str).tolist() for key in ("split", "smiles"))
    rows = rows_of(path, splits, split)[:count]
    reactions = load_npz(path)
    require_transition_states(path, rows, reactions)
    # all rows: an earlier part of the run may have done others than are asked for now
    plan = LevelPlan(
        dict(enumerate(reactions)), dict(enumerate(splits)), dict(enumerate(smiles)), calculator,
        dict(calculator_kwargs or {}), rows,
    )  # fmt: skip
    first = reactions[rows[0]]
    calculator_from_spec(calculator, dict(plan.calculator_kwargs), first.numbers, first.charge, first.spin)
    settings = {
        "source": str(path), "files": {str(path): sha256(path.read_bytes())}, "calculator": calculator,
        "calculator_kwargs": plan.calculator_kwargs,
    }  # fmt: skip
    return plan, settings


def require_transition_states(path: Path, rows: Sequence[int], reactions: Sequence[Reaction]) -> None:
    """See that the reactions in `rows` of a set have one.

    Raises:
        InputError: names the first that has none.
    """
    for row in rows:
        if reactions[row].ts is None:
            raise InputError(
                "no transition state to start from",
                where=f"{path}, reaction {row} (id {reactions[row].name})",
                expected="a known one in every reaction",
                remedy="find it first (molgen ts), or remove the reaction",
            )


def rows_of(path: Path, splits: Sequence[str], split: str | None) -> list[int]:
    """Rows, rising, of the `splits` of a set that are those named ("all", or names with commas; default train and val).

    Raises:
        InputError: no such split in `path`.
    """
    if not len(splits):
        raise InputError("holds no reactions", where=str(path), expected="one at least", remedy=EMPTY)
    there = sorted(set(splits))
    if split == "all":
        wanted = there
    elif split is None:
        wanted = [name for name in DEFAULT_SPLITS if name in there]
    else:
        wanted = [name.strip() for name in split.split(",")]
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise InputError(
            f"no reaction of split '{(missing or ['train'])[0]}' in {path}",
            where="--split",
            expected=f"of {', '.join(there)}, or all",
        )
    return [row for row, name in enumerate(splits) if name in wanted]


def relevel(
    plan: LevelPlan,
    run: Run,
    *,
    seconds: float | None = None,
    workers: int | None = None,
    work: Callable[[LevelPlan], Callable[[int], dict[str, Any]]] = Releveling,
    progress: Callable[[Twin], None] = lambda twin: None,
) -> Twin:
    """Re-optimise the reactions of `plan`; the records end up in `run.directory/reactions.npz` (see the module).

    Every finished reaction is in the journal (`attempts.jsonl`): killed anywhere and resumed, a run gives the same file
    as one that was not, whatever the number of workers. Ended by `seconds`, the file has the reactions done so far.

    Args:
        seconds: begin no more reactions after so many of this call. workers: processes, default one a core.
        work: makes the callable that does a reaction, in each worker. progress: called after every reaction.

    Raises:
        InputError: no worker, or a damaged journal. CalculatorError: it failed on every reaction.
    """
    pool = WorkerPool(partial(work, plan), workers, "--workers")
    twin = Twin(plan, run)
    twin.journal.open()

    def lost(row: int) -> dict[str, Any]:
        return unfound(row, plan.reactions[row], WORKER_DIED)

    def one_more() -> None:
        twin.refuse_broken(least=min(BROKEN, twin.asked))
        progress(twin)

    carry_out(
        pool, plan.rows, twin.journal, lost=lost, progress=one_more, publish=twin.publish, seconds=seconds,
    )  # fmt: skip
    twin.refuse_broken(least=1)
    return twin


class Twin:
    """Where a run stands: the reactions done, now or in an earlier part of it, in the source's order."""

    def __init__(self, plan: LevelPlan, run: Run):
        self.plan, self.run = plan, run
        self.journal = Journal(run.path(JOURNAL), key="index")
        self._begin = time.monotonic()

    @property
    def records(self) -> list[dict[str, Any]]:
        """Of the reactions done."""
        return [self.journal.finished[row] for row in sorted(self.journal.finished)]

    @property
    def asked(self) -> int:
        """How many reactions are done or to be done."""
        return len({*self.plan.rows, *self.journal.finished})

    def refuse_broken(self, least: int) -> None:
        """See that the calculator has found anything at all.

        Raises:
            CalculatorError: it failed on all reactions done, `least` or more.
        """
        found = self.journal.finished.values()
        failed = [r for r in found if r["reason"] in NO_ANSWER and r["energies"] == [None] * 3]
        refuse_all_failed(failed, len(found), self.plan.calculator, least)

    def publish(self) -> None:
        """Write the npz and the figures."""
        self._write(self.run.path(REACTIONS))
        self.run.record(**self.figures())

    def figures(self) -> dict[str, Any]:
        """What the summary says: verdicts, their reasons, the change of geometry, costs."""
        records = self.records
        moved = [record["rmsd"] for record in records if record["verified"]]
        unusable = (r["reason"] for r in records if r["outcome"] == "intended" and not r["verified"])
        calls: Counter[str] = Counter()
        for record in records:
            calls.update(record.get("calls", {}))
        return {
            "reactions": len(records),
            "asked": self.asked,
            "verdicts": self._verdicts(),
            "verified": len(moved),
            "intended_not_verified": dict(Counter(unusable).most_common()),
            "rmsd_median": round(float(np.median(moved)), 4) if moved else None,
            "seconds_per_reaction": round(sum(r.get("seconds", 0.0) for r in records) / max(len(records), 1), 3),
            "energy_calls": calls.total(),
            "calls_by_stage": dict(calls),
            "rejections": dict(Counter(r["reason"] for r in records if not r["verified"]).most_common()),
        }

    def line(self) -> str:
        """Rate and shares of verdicts, for the person watching."""
        verdicts = self._verdicts()
        done = max(sum(verdicts.values()), 1)
        shares = ", ".join(f"{number / done:.0%} {name}" for name, number in verdicts.items())
        rate = 3600 * self.journal.fresh / max(time.monotonic() - self._begin, 1e-6)
        verified = sum(record["verified"] for record in self.journal.finished.values())
        return f"{done} of {counted(self.asked, 'reaction')}, {verified} verified ({shares}); {rate:.0f} an hour"

    def _verdicts(self) -> dict[str, int]:
        found = Counter(record["outcome"] for record in self.journal.finished.values())
        return {name: found[name] for name in LEVEL_VERDICTS}

    def _write(self, path: Path) -> None:
        records = self.records
        rows = [record["index"] for record in records]
        columns: dict[str, Any] = {
            "index": np.array(rows, dtype=np.int64), "verdict": [r["outcome"] for r in records],
            "reason": [r["reason"] for r in records],
            "verified": np.array([r["verified"] for r in records], dtype=bool),
            "source_level": [self.plan.reactions[row].level for row in rows],
        }  # fmt: skip
        for key in ("energies", "fmax"):
            columns[key] = np.array([r[key] for r in records], dtype=float).reshape(-1, 3)
        for key in ("imaginary_cm", "rmsd"):
            columns[key] = np.array([r[key] for r in records], dtype=float)
        barrier = (columns["energies"][:, 1] - columns["energies"][:, 0]) / KCAL_MOL
        columns["barrier_kcal"] = np.where(columns["verified"], barrier, np.nan)
        if self.plan.smiles:
            columns["smiles"] = [self.plan.smiles[row] for row in rows]
        splits = [self.plan.splits[row] for row in rows]
        save_npz(path, [self._reaction(record) for record in records], splits, columns)

    def _reaction(self, record: dict[str, Any]) -> Reaction:
        source = self.plan.reactions[record["index"]]
        r, ts, p = (np.array(record[side], dtype=float) for side in SIDES)
        of_p = _fragments(source.numbers, p, source.product, source.product_fragments)
        of_r = _fragments(source.numbers, r, source.reactant, source.reactant_fragments)
        level = level_name(self.plan.calculator, self.plan.calculator_kwargs)
        return Reaction(source.numbers, r, p, of_p, of_r, source.charge, source.spin, source.name, ts, level)


def _fragments(numbers: np.ndarray, x: np.ndarray, before: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fragment of each atom: the source's, unless the end became another molecule."""
    return fragments(bond_graph(numbers, x)) if bonding_differences(numbers, x, before) else known
