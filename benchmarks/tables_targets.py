"""The table of all targets beside what was measured, for tables.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markdown import table


@dataclass(frozen=True)
class Target:
    """One figure and what it was to be.

    Attributes:
        what: in words, with its unit. measured, must, aim: numbers. most: whether less is better.
        digits: decimals shown.
    """

    what: str
    measured: float
    must: float
    aim: float | None = None
    most: bool = False
    digits: int = 3

    @property
    def reached(self) -> str:
        """The better of "aim" and "must", or "**missed**"."""
        return "aim" if self._reached(self.aim) else "must" if self._reached(self.must) else "**missed**"

    def row(self) -> list[str]:
        """Its cells in the table."""
        shown = ["" if value is None else f"{value:.{self.digits}f}" for value in (self.measured, self.must, self.aim)]
        sign = "at most " if self.most else "at least "
        shown[1] = sign + shown[1]
        return [self.what, *shown, self.reached]

    def _reached(self, limit: float | None) -> bool:
        return limit is not None and (self.measured <= limit if self.most else self.measured >= limit)


def tsgen(ts: dict, correction: dict, barriers: dict) -> Iterator[Target]:
    """TS-GEN: 836 test reactions, the 200 fixed ones on GFN2-xTB, 60 barriers by DFT."""
    geometry, saddles = ts["geometry"], ts["saddles"]
    five, two = correction["search_5_calls"], correction["two_level"]
    dft = barriers["barriers"]["two_level"]
    ceiling = 100 * saddles["molgen"]["intended"] / saddles["dft"]["intended"]
    yield Target("TS-GEN: RMSD median, no calculator, Å", geometry["rmsd_median"], 0.12, 0.09, most=True)
    yield Target("TS-GEN: RMSD mean, no calculator, Å", geometry["rmsd_mean"], 0.20, 0.17, most=True)
    yield Target("TS-GEN: wrong handedness, %", 100 * geometry["wrong_handedness"], 1.0, most=True, digits=2)
    yield Target("TS-GEN: RMSD median, 5 gradient calls, Å", five["median"], 0.10, 0.08, most=True)
    yield Target("TS-GEN: RMSD mean, 5 gradient calls, Å", five["mean"], 0.18, 0.15, most=True)
    yield Target("TS-GEN: RMSD median, two-level, Å", two["median"], 0.085, 0.06, most=True)
    yield Target("TS-GEN: intended, % of those from the DFT transition state", ceiling, 95, 100, digits=0)
    yield Target("TS-GEN: gradient calls of these", saddles["molgen"]["calls_refine_mean"], 60, most=True, digits=0)
    yield Target("TS-GEN: barrier error by DFT, mean, kcal/mol", dft["mean"], 4, 2.6, most=True, digits=2)
    yield Target("TS-GEN: barrier error by DFT, median, kcal/mol", dft["median"], 1.5, 1.0, most=True, digits=2)


def prose(report: dict) -> Iterator[Target]:
    """Prose: the starred held-out peptides, 10,000 samples each."""
    means = report["zero-shot"]["means"]
    for length, must, aim in (("2", 0.15, 0.40), ("3", 0.06, 0.20), ("4", 0.03, 0.10)):
        yield Target(f"Prose: ESS, {length} residues", means[length]["ess"], must, aim)
    for length, must, aim in (("2", 0.30, 0.15), ("4", 1.0, 0.60)):
        distances = means[length]["t_w2"]
        text = f"Prose: T-W2, {length} residues, reweighted (two references apart: {distances['floor']:.2f})"
        yield Target(text, distances["reweighted"], must, aim, most=True, digits=2)
    pairs = [row for row in report["finetune"]["rows"].values() if row["residues"] == 4]
    now, then = report["about"]["weights"], {row["key"]["weights"] for row in pairs}
    told = "" if then == {now} else " (weights before the shipped ones)"
    before, after = (sum(row[key]["ess"] for row in pairs) for key in ("before", "weights"))
    text = f"Prose: ESS after finetuning over before, 4 residues{told}"
    yield Target(text, after / before, 3, 0.30 * len(pairs) / before, digits=1)
    broken = sum(m["wrong_chirality"] + m["broken_topology"] for m in means.values())
    yield Target("Prose: wrong chirality, broken topology", broken, 0, 0, most=True, digits=0)
    speed = [row["samples"]["2"] for name, row in report["speed"]["rows"].items() if len(name) == 2]
    yield Target("Prose: samples a second, 2 residues, 2 cores", sum(speed) / len(speed), 200, 1000, digits=0)
    over = [row["over_dynamics"] for name, row in report["against dynamics"].items() if len(name) == 2]
    yield Target("Prose: independent samples over dynamics', 2 residues", sum(over) / len(over), 5, 50, digits=0)


def sampler(report: dict) -> Iterator[Target]:
    """The CV-biased sampler: the worst of three seeds."""
    rows, truth = report["sn2"]["rows"], report["sn2"]["reference"]["barrier"]
    worst: dict[str, Any] = {
        key: max(abs(row[key]) for row in rows) for key in ("rmse", "swap_asymmetry", "khat_biased")
    }
    off = max(abs(row["barrier"] - truth) for row in rows)
    yield Target("CV sampler, SN2: barrier error, kcal/mol", off, 0.3, most=True, digits=2)
    yield Target("CV sampler, SN2: RMSE of the surface, kcal/mol", worst["rmse"], 0.3, most=True, digits=2)
    yield Target("CV sampler, SN2: swap asymmetry, kcal/mol", worst["swap_asymmetry"], 0.2, most=True, digits=2)
    yield Target("CV sampler, SN2: k-hat under the bias", worst["khat_biased"], 0.7, most=True, digits=2)


def targets(results: dict[str, dict]) -> str:
    """Every target, from the reports of benchmarks/results/ by file name."""
    rows = [
        *tsgen(results["ts.json"], results["correction.json"], results["barriers.json"]),
        *prose(results["prose.json"]),
        *sampler(results["cv.json"]),
    ]
    held = sum("missed" not in row.reached for row in rows)
    filled = table(" | measured | must | aim | reached", (row.row() for row in rows))
    return f"{filled}\n\n{held} of {len(rows)} musts hold."
