"""What `molgen fes` prints of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molgen.cli import common
from molgen.words import counted


def report(summary: dict[str, Any], out: Path) -> str:
    """A run in words: basins with their free energies, how good the weights are, what it cost, where it is."""
    from molgen.reweight.estimate import doubt
    from molgen.reweight.importance import LEAST_DRAWS
    from molgen.units import shown_value

    gate, weights = summary["gate"], summary["weights"]
    enough = weights["ess"] * weights["n"] >= LEAST_DRAWS
    few = "" if enough else f": fewer than {LEAST_DRAWS} effective ones, draw more"
    rows = [
        ("verdict", f"{summary['verdict']}; k-hat {common.number(gate['khat_biased'])} under the bias (fine up to "
                    f"{summary['weights_biased']['threshold']:.2g}, refused above {gate['limit']})"),
        ("without bias", f"{summary['verdict_unbiased']}; k-hat {common.number(weights['khat'])}, of averages over all "
                         "samples"),
        ("ESS", f"{summary['weights_biased']['ess']:.1%} under the bias, {weights['ess']:.1%} without it, of "
                f"{weights['n']} samples{few}"),
        ("without weights", _without(summary["disagreement_kt"], gate["passed"] and not summary.get("repair"))),
    ]  # fmt: skip
    if repair := summary.get("repair"):
        rows.append(
            (
                "repaired" if repair["used"] else "repair failed",
                f"by sequential Monte Carlo, {repair['particles']} chains of {repair['moves']} moves from "
                f"{repair['ancestors']} samples; their halves differ by {common.number(repair['halves'])} kT "
                f"(fine up to {repair['limit']:g}), {common.number(repair['shift'])} kT from the weights' "
                f"surface (fine up to {2 * repair['limit']:g}); they remember {max(repair['memory'], 0.0):.0%} of "
                f"where they began (fine up to {repair['forgot']:.0%})",
            )
        )
    for row in summary["results"]:
        place = ", ".join(shown_value(value, axis) for value, axis in zip(row["minimum"], summary["axes"], strict=True))
        if row["error"] == 0 and row["value"] == 0:
            said = "" if row["reliable"] else f" ({doubt(row['khat'], False, row.get('why', ''))})"
            rows.append((row["name"], f"0, the deepest, at ({place}){said}"))
            continue
        rows.append((row["name"], f"{_estimated(row)} at ({place})"))
    for row in summary.get("barriers", []):
        one, other = row["basins"]
        where = f", top of the profile, at {shown_value(row['place'], summary['axes'][0])}, above its minimum"
        rows += [(f"barrier {a} to {b}", _estimated(row[side]) + where)
                 for a, b, side in ((one, other, "forward"), (other, one, "reverse"))]  # fmt: skip
    for name, row in summary.get("barrier", {}).items():
        if isinstance(row, dict):
            rows.append((name if name == "reaction" else f"barrier {name}", _estimated(row)))
    rows += [("missing?", text) for text in summary.get("missing", [])]
    if (cap := summary.get("cap_kt")) and "barrier" not in summary:
        rows.append(("bias", f"reached its cap of {cap:.0f} kT: what lies behind higher barriers was not visited; --cap"
                             " raises it"))  # fmt: skip
    if lost := summary["weight_zero"]:
        rows.append(("weight zero", f"{lost} of {weights['n']} samples"))
    rows += [("rejected", f"{count} x {reason}, of all energies") for reason, count in
             sorted(summary["rejections"].items())]  # fmt: skip
    cost = f"{summary['energy_calls']} energies, {summary['wall_seconds']:.0f} s, {counted(summary['rounds'], 'round')}"
    rows.append(("cost", cost))
    rows.append(("files", common.written(out)))
    return "\n".join(f"{name:<16} {text}" for name, text in rows)


def _estimated(row: dict[str, Any]) -> str:
    """An estimate with its error, and what it lacks."""
    from molgen.reweight.estimate import doubt

    said = doubt(row["khat"], row["reliable"], row.get("why", ""))
    text = f"{common.number(row['value'], 4)} +- {common.number(row['error'])} {row['unit']}"
    return f"{text} ({said})" if said else text


def _without(apart: dict[str, float], untried: bool) -> str:
    """How far the surfaces that need no path weights are from the one that is shown; `untried`: a repair is left."""
    if apart["histogram"] is None or apart["bias"] is None:
        return "not comparable: too few bins"
    text = f"histogram off by {common.number(apart['histogram'])} kT (fine up to {apart['limit']:g})"
    if apart["histogram"] > apart["limit"]:
        text += ": the weights repair much, so look at k-hat and at another seed"
        text += ", or try --repair always" if untried else ""
    return f"{text}; the bias alone, which only pushes, by {common.number(apart['bias'])} kT"
