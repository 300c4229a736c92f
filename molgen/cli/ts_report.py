"""What `molgen ts` prints of a result."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molgen.cli import common
from molgen.files import SUMMARY
from molgen.words import counted

if TYPE_CHECKING:
    from molgen.saddle.thermochemistry import ReactionThermochemistry
    from molgen.workflows.ts_mechanism import Mechanism
    from molgen.workflows.ts_result import Candidate, TSResult

KINDS = ("gibbs", "enthalpy")
LARGE_TUNNELLING = 3.0  # a first-order correction holds near 1


def saddles_of(result: TSResult) -> list[Candidate]:
    """Those that the result consists of: one, those of all steps, or none."""
    if result.mechanism is not None and result.mechanism.complete:
        return [step.saddle for step in result.mechanism.steps if step.saddle is not None]
    return [result.best] if result.verified else []


def beside(
    result: TSResult, out: Path, calculator: str, solvent: str | None = None, kwargs: Mapping[str, Any] | None = None
) -> str:
    """Where to look on from the best saddle, if there is one."""
    from molgen.workflows.ts_output import INTERMEDIATE

    if result.mechanism is not None:
        return " (search-2 and so on went on from the best saddle's intermediate, in vain)"
    if known := result.best.known:
        files = (INTERMEDIATE, "product.xyz") if known == "reactant" else ("reactant.xyz", INTERMEDIATE)
        options = [f"--charge {result.reaction.charge}"] if result.reaction.charge else []
        options += [f"--spin {result.reaction.spin}"] if result.reaction.spin > 1 else []
        options += [f"--calculator {shlex.quote(calculator)}"] if calculator != "gfn2" else []
        options += [f"--calculator-kwargs {shlex.quote(json.dumps(dict(kwargs)))}"] if kwargs else []
        options += [f"--solvent {solvent}"] if solvent else []
        command = " ".join(["molgen ts", *(shlex.quote(str(out / file)) for file in files), *options])
        return f" (the best saddle joins the {known} to {INTERMEDIATE}: go on with {command})"
    return " (path.xyz shows what lies beside the best saddle)" if (out / "path.xyz").exists() else ""


def more_effort(result: TSResult, limit: int) -> str:
    """Advice where guesses were left for want of time, the calculator failed, or most refinements took all `limit`
    gradient calls."""
    from molgen.workflows.ts_result import OUT_OF_TIME

    left, short = (result.rejections.get(reason, 0) for reason in (OUT_OF_TIME, "refinement did not converge"))
    tries = len(result.candidates)
    advice = f"; the time was up with {counted(left, 'guess')} left, so try a longer --time-budget" if left else ""
    failed = [c for c in result.candidates if c.verdict == "failed"]
    advice += f"; it failed on {len(failed)} of {counted(tries, 'guess')} ({failed[0].reason})" if failed else ""
    if 2 * short > tries:
        of = counted(tries, "refinement")
        advice += f"; {short} of {of} ran out of {limit} gradient calls, so try --max-calls {3 * limit}"
    return advice


def report(result: TSResult, out: Path) -> str:
    """The result in words: verdict, barriers, mode, confidence, cost, files."""
    best, reaction = result.best, result.reaction
    steps = result.mechanism
    lines = [f"verdict              {best.verdict.replace('_', ' ')}" + (f": {best.reason}" if best.reason else "")]
    if steps is not None and steps.complete:
        lines = [f"verdict              intended, in {len(steps.steps)} steps"]
    elif best.barrier_forward_kcal is not None and best.barrier_reverse_kcal is not None:
        forward, back = best.barrier_forward_kcal, best.barrier_reverse_kcal
        if best.verdict == "intended":
            lines.append(f"barrier              {forward:.1f} kcal/mol forward, {back:.1f} back")
            lines += _from_lowest(result)
        else:
            above = [f"{round(value, 1) + 0.0:.1f}" for value in (forward, back)]  # no -0.0
            lines.append(f"above its wells      {above[0]} and {above[1]} kcal/mol")
    if steps is not None:
        lines += _mechanism_lines(steps)
    elif result.thermochemistry is not None:
        lines += thermochemistry_lines(
            result.thermochemistry, "barrier" if best.verdict == "intended" else "above wells"
        )
    several = steps is not None and steps.complete  # whose figures are those of no single saddle
    if best.imaginary_frequency_cm is not None and not several:
        mode = best.imaginary_frequency_cm
        lines.append(f"imaginary frequency  {-mode:.0f}i cm-1" if mode < 0 else f"lowest mode          {mode:.0f} cm-1")
    if best.confidence is not None and not several:
        known = result.level == "GFN2-xTB" and not reaction.charge and not reaction.spin
        caution = "" if known else " (calibrated on neutral molecules with GFN2-xTB)"
        lines.append(f"confidence           {best.confidence:.0%} before verification{caution}")
    if not several:
        lines.append(f"guess                {best.source}, sample {best.sample}")
    lines.append(f"cost                 {result.gradient_calls} gradient calls, {result.seconds:.1f} s")
    lines += _corrected_lines(result)
    if others := result.candidates[1:]:
        counts = Counter(c.verdict for c in others)
        barriers = {"intended": _different_barriers(c for c in others if c.verdict == "intended")}
        verdicts = (
            f"{count} {verdict.replace('_', ' ')}{barriers.get(verdict, '')}" for verdict, count in counts.items()
        )
        lines.append(f"other candidates     {len(others)}: {', '.join(verdicts)}")
    for reason, count in sorted(result.rejections.items()):
        lines.append(f"set aside            {count} x {reason}")
    further = sorted(file.parent.name for file in out.glob(f"search-*/{SUMMARY}")) if steps is not None else []
    lines.append(f"files                {', '.join([common.written(out), *(f'{name}/' for name in further)])}")
    return "\n".join(lines)


def _from_lowest(result: TSResult) -> list[str]:
    """The barriers from conformers that are lower than the wells beside the saddle, where there are such."""
    barriers = result.barriers_from_lowest_kcal
    if barriers is None:
        return []
    told = f"{barriers[0]:.1f} kcal/mol forward, {barriers[1]:.1f} back"
    have = "has" if len(result.conformers) == 1 else "have"
    return [f"from the lowest      {told}: the {' and the '.join(result.conformers)} {have} lower conformers"]


def _different_barriers(candidates: Iterable[Candidate]) -> str:
    """In brackets; mirror images have the same."""
    barriers = sorted(c.barrier_forward_kcal for c in candidates if c.barrier_forward_kcal is not None)
    different = dict.fromkeys(f"{barrier:.1f}" for barrier in barriers)
    return f" ({', '.join(different)} kcal/mol forward)" if different else ""


def _corrected_lines(result: TSResult) -> list[str]:
    """What is in ts_corrected.xyz, if it is there."""
    steps = result.mechanism.steps if result.mechanism is not None else []
    found = [step.corrected for step in steps if step.corrected is not None] or [result.corrected]
    first = found[0]
    if first is None:
        return []
    errors = ", ".join(f"{one.expected_rmsd:.2f}" for one in found if one is not None)
    told = f"{first.level}, expected error {errors} A, not verified"
    if first.source == "guess":
        told += "; from the guess, since no saddle was proven"
    return [f"corrected            ts_corrected.xyz: {told}"]


def _mechanism_lines(mechanism: Mechanism) -> list[str]:
    """The steps from the reactant to the product in words."""
    from molgen.units import kcal

    lines = []
    for k, step in enumerate(mechanism.steps, start=1):
        barriers, change = step.barriers_kcal, kcal(step.path_energies[-1] - step.path_energies[0])
        if barriers is not None:
            told = f"barrier {barriers[0]:.1f} kcal/mol forward, {barriers[1]:.1f} back"
            if (gibbs := step.thermochemistry) is not None:
                told += f"; Gibbs {gibbs.gibbs_forward_kcal:.1f}, {gibbs.gibbs_reverse_kcal:.1f}"
            if step.saddle is not None and step.saddle.imaginary_frequency_cm is not None:
                told += f" ({abs(step.saddle.imaginary_frequency_cm):.0f}i cm-1)"
        else:
            told = "not found" if step.search is None else f"no barrier, {change:+.1f} kcal/mol, pieces held apart"
        lines.append(f"{f'step {k}':21}{step.ends[0]} to {step.ends[1]}: {told}")
    if math.isfinite(mechanism.highest_kcal):
        lines.append(f"highest point        {mechanism.highest_kcal:.1f} kcal/mol above the reactant")
        if math.isfinite(mechanism.highest_gibbs_kcal):
            lines[-1] += f"; Gibbs {mechanism.highest_gibbs_kcal:.1f}"
    known = next((step.thermochemistry for step in mechanism.steps if step.thermochemistry is not None), None)
    if known is not None:
        lines.append(f"Gibbs energies       at {known.temperature:g} K, {known.standard_state}")
    return lines


def thermochemistry_lines(found: ReactionThermochemistry, title: str = "barrier") -> list[str]:
    """Gibbs barriers and rates in words."""
    gibbs, enthalpy = ([found.summary()[f"{kind}_{way}_kcal"] for way in ("forward", "reverse")] for kind in KINDS)
    forward, back = found.rates
    lasts = common.duration(math.log(2) / forward if forward else math.inf)
    lines = [
        f"{f'Gibbs {title}':21}{gibbs[0]:.1f} kcal/mol forward, {gibbs[1]:.1f} back at {found.temperature:g} K; "
        f"enthalpy {enthalpy[0]:.1f}, {enthalpy[1]:.1f}",
        f"rate                 {forward:.1e} 1/s forward, half-life {lasts}; {back:.1e} 1/s back; "
        f"tunnelling x {found.tunnelling:.1f}",
    ]
    points = {"reactant": found.reactant, "transition state": found.saddle, "product": found.product}
    if odd := ", ".join(f"{point.imaginary} of the {name}" for name, point in points.items() if point.imaginary):
        lines[0] += f" (imaginary modes taken as real: {odd})"
    if found.tunnelling > LARGE_TUNNELLING:
        lines[1] += ", beyond what Wigner's formula is for"
    for side, lowest in found.lowest.items():
        rate = f"{lowest.rate:.1e} {lowest.rate_unit}"
        lines.append(f"{f'{side}, lowest':21}Gibbs barrier {lowest.barrier_kcal:.1f} kcal/mol, {rate}")
    for side, pieces in found.pieces.items():
        rate = "as fast as they meet" if pieces.rate is None else f"{pieces.rate:.1e} {pieces.rate_unit}"
        barrier = f"Gibbs barrier {pieces.barrier_kcal:.1f} kcal/mol ({found.standard_state})"
        lines.append(f"{f'{side} apart':21}{' + '.join(pieces.names)}: {barrier}, {rate}")
    return lines
