"""The tables of TS-GEN, for tables.py."""

from __future__ import annotations

from markdown import table

ROWS = (
    ("TS-GEN, one guess", "molgen"),
    ("sqrt-distance guess", "sqrt"),
    ("CI-NEB (ASE)", "neb"),
    ("true DFT TS", "dft"),
)


def geometry(report: dict) -> str:
    """Errors of guesses on the test split."""
    g, rows = report["geometry"], []
    peers = {"rmsd_median": "0.284", "rmsd_mean": "0.376", "dmae_mean": "0.120"}
    for title, key in (
        ("RMSD median, Å", "rmsd_median"),
        ("RMSD mean, Å", "rmsd_mean"),
        ("RMSD median, mirror images allowed, Å", "rmsd_reflect_median"),
        ("D-MAE mean, Å", "dmae_mean"),
        ("wrong handedness", "wrong_handedness"),
        ("wrong handedness, ends not both achiral", "wrong_determined"),
    ):
        values = [g[key], g["baselines"]["sqrt_distance"][key], g["baselines"]["midpoint"][key]]
        shown = [f"{v:.2%}" if key.startswith("wrong") else f"{v:.3f}" for v in values]
        rows.append([title, *shown, peers.get(key, "")])
    header = f"{g['n']} test reactions | TS-GEN | sqrt-distance | midpoint | ts_gen GNN, published"
    per_guess = f"{g['seconds_per_guess'] * 1000:.0f} ms a guess at batch 32"
    quantiles = ", ".join(f"{q:.3f}" for q in g["rmsd_quantiles"])
    return f"{table(header, rows)}\n\n{per_guess}; RMSD at the 10, 25, 75 and 90 % quantile: {quantiles} Å."


def invariance(report: dict) -> str:
    """Largest change of a guess when the same reaction is presented differently."""
    keys = ("rotation", "atom_order", "fragment_placement", "exchange_of_sides")
    rows = []
    for title, part in (("one product", "single"), ("several products", "multi_fragment")):
        row = report["invariance"][part]
        rows.append([f"{title} ({row['n']} reactions)", *(f"{row[k]['max']:.0e}" for k in keys)])
    return table(
        "largest change of a guess, Å | rotation | atom order | fragment placement | exchange of R and P", rows
    )


def saddles(report: dict) -> str:
    """Intended saddles and gradient calls by origin of the guess."""
    found, rows = report["saddles"], []
    for title, key in ROWS:
        if key in found:
            r = found[key]
            rest = r["not_a_saddle"] + r["not_converged"] + r["failed"]
            calls = [
                r["calls_guess_mean"] + r["calls_refine_mean"],
                r["calls_verify_mean"],
                r["calls_search_per_intended"],
            ]
            shares = [f"{share:.1%}" for share in (r["intended"], r["half"], r["unintended"], rest)]
            rows.append([title, *shares, *(f"{count:.0f}" for count in calls)])
    if "ranked" in report:
        r = report["ranked"]
        rest = 1 - r.get("intended", 0) - r.get("half", 0) - r.get("unintended", 0)
        several = r.get("several_steps", 0)
        first = f"{r.get('intended', 0):.1%}" + (f", and {several:.1%} in several steps" if several else "")
        others = (r.get("half", 0) - r.get("half_in_steps", 0), r.get("unintended", 0), rest)
        title = f"`molgen ts --no-lower` ({r['n']} reactions; 8 samples, ranked)"
        rows.append([title, first, *(f"{v:.1%}" for v in others), f"all calls: {r['calls_mean']:.0f}", "", ""])
    return table(
        "guess | intended | half | unintended | not a saddle, not converged, failed "
        "| calls: guess + refinement, mean | calls: verification, mean | guess + refinement calls per intended",
        rows,
    )


def confidence(report: dict) -> str:
    """Reliability of the confidence."""
    rows = []
    for title, key in (("of a raw guess", "guess"), ("after refinement", "refined")):
        r = report["confidence"][key]
        fifths = ", ".join(f"{b['predicted']:.2f} / {b['intended']:.2f}" for b in r["table"])
        rows.append([title, f"{r['expected_calibration_error']:.3f}", f"{r['area_under_roc']:.2f}", fifths])
    return table("confidence | expected calibration error | area under ROC | predicted / observed by fifth", rows)


def gradients(report: dict) -> str:
    """Errors after a few gradients, and from the saddle."""
    calls = report["calls_mean"]  # of the two-level row, which adds two to the search
    found = [("TS-GEN's guess", "0", report["gradients"][0])]
    found += [
        (f"{k} x gradient, correction", str(k), figures)
        for k, figures in enumerate(report["gradients"])
        if k in (1, 2, 5)
    ]
    found += [
        ("search of 5 calls, correction", "5", report["search_5_calls"]),
        ("GFN2-xTB saddle", f"{calls - 2:.0f}", report["saddle"]),
        ("GFN2-xTB saddle, corrected (two-level)", f"{calls:.0f}", report["two_level"]),
        ("of searches that converged: saddle", "", report["saddle_of_converged"]),
        ("of searches that converged: two-level", "", report["two_level_of_converged"]),
    ]
    keys = ("median", "mean", "quantile_75", "quantile_90")
    rows = [[title, spent, *(f"{f[key]:.3f}" for key in keys)] for title, spent, f in found]
    header = f"{report['n']} test reactions | gradient calls, mean | RMSD median, Å | mean, Å | 75 % | 90 %"
    fifths = ", ".join(f"{r['expected']:.2f} / {r['error_median']:.2f}" for r in report["expected_against_error"])
    return (
        f"{table(header, rows)}\n\n"
        f"Predicted error / median of the true one, Å, by fifths of the predicted one: {fifths}."
    )


def barriers(report: dict) -> str:
    """Barrier errors at the level of DFT."""
    report = report["barriers"]
    ended = f"of the {report['converged']} searches that converged"
    names = {
        "guess": "TS-GEN's guess",
        "two_level": "GFN2-xTB saddle, corrected (two-level)",
        "two_level_of_converged": f"{ended}: saddle, corrected (two-level)",
    }
    rows = []
    for key, title in names.items():
        f = report[key]
        rows.append([title, f"{f['mean']:.2f}", f"{f['median']:.2f}", f"{f['within_1']:.0%}"])
    return table(f"{report['n']} test reactions | mean | median | within 1 kcal/mol", rows)


def _outcome(row: dict) -> tuple[str, str, str]:
    """Verdict in words, and the barriers where they are those of the reaction."""
    verdict = row["verdict"].replace("_", " ")
    if verdict == "intended":
        verdict += ", another stereoisomer" if row["stereo"] else ""
        lowest = row.get("barriers_from_lowest_kcal") or (None, None)
        beside = (row["barrier_forward_kcal"], row["barrier_reverse_kcal"])
        there, back = (_from_wells(*both) for both in zip(beside, lowest, strict=True))
        return verdict, there, back
    if (row.get("mechanism") or {}).get("complete"):
        steps = row["mechanism"]["steps"]
        return f"intended, in {len(steps)} steps", "; ".join(_barriers(step) for step in steps), ""
    lost, side = row.get("barrierless_kcal"), row.get("barrierless_side")
    return verdict + ("" if lost is None else f"; no barrier: the {side}'s pieces lose {lost:.0f} kcal/mol"), "", ""


def _from_wells(beside: float, lowest: float | None) -> str:
    """A barrier from the well beside the saddle and, in brackets where it is another, from the lowest conformer."""
    more = f" ({lowest:.1f})" if lowest is not None and f"{lowest:.1f}" != f"{beside:.1f}" else ""
    return f"{beside:.1f}{more}"


def _barriers(step: dict) -> str:
    there, back = step["barrier_forward_kcal"], step["barrier_reverse_kcal"]
    return "none" if there is None else f"{there:.1f}, {back:.1f}"


def textbook(report: dict) -> str:
    """Named reactions from SMILES."""
    return table(
        "reaction | from SMILES | barrier there, back, kcal/mol | guess | gradient calls | s "
        "| from structures, atoms shuffled | barrier there",
        (
            [*_cells(row), *(_outcome(row["structures"])[:2] if "structures" in row else ["", ""])]
            for row in report["textbook"]
        ),
    )


def ions(report: dict) -> str:
    """Named reactions of ions and radicals."""
    return said(report["ions"])


def elements(report: dict) -> str:
    """Named reactions of other elements and larger molecules."""
    return said(report["elements"])


def larger(report: dict) -> str:
    """Named reactions of 21 to 33 atoms."""
    return said(report["larger"])


def baker(report: dict) -> str:
    """The reactions of Baker and Chan."""
    return said(report["baker"])


def unseen(report: dict) -> str:
    """Reactions written down before any was tried."""
    return said(report["unseen"])


def water(report: dict) -> str:
    """The ions in implicit water, beside what they do in the gas phase."""
    gas, rows = {row["name"]: row for row in report["ions"]}, []
    for row in report["water"]:
        name = row["name"].removesuffix(", in water")
        pieces = ((row.get("thermochemistry") or {}).get("pieces") or {}).get("reactant")
        apart = f"{pieces['barrier_kcal']:.1f}" if pieces else ""
        apart += f", {pieces['rate']:.0e} {pieces['rate_unit']}" if pieces and pieces["rate"] is not None else ""
        before, after = _cells(gas[name]), _cells(row)
        rows.append([name, *before[1:3], *after[1:3], apart, *after[4:]])
    return table(
        "reaction | gas phase | barrier there, back, kcal/mol | in water | barrier there, back "
        "| Gibbs barrier above the reactants apart, rate | gradient calls | s",
        rows,
    )


def said(found: list[dict]) -> str:
    """Reactions with what is said of those without a proven saddle."""
    rows = []
    for row in found:
        whole = (row.get("mechanism") or {}).get("complete")
        others = row["reason"] if row["verdict"] in ("half", "unintended") and not whole else ""
        gone = [f"the {side} is no minimum: it becomes {other}" for side, other in row.get("unstable", {}).items()]
        rows.append([*_cells(row), "; ".join(filter(None, [others, *gone]))])
    return table(
        "reaction | verdict | barrier there, back, kcal/mol | guess | gradient calls | s | wells of others", rows
    )


def _cells(row: dict) -> list[str]:
    verdict, there, back = _outcome(row)
    cells = [row["name"], verdict, ", ".join(filter(None, (there, back))), row.get("source", "")]
    if row["verdict"] == "failed":
        return [*cells, "", ""]
    return [*cells, f"{row['gradient_calls']}", f"{row.get('cpu_seconds', row.get('seconds')):.0f}"]


MAKERS = {
    "textbook.json": {
        "textbook": textbook,
        "ions": ions,
        "elements": elements,
        "larger": larger,
        "baker": baker,
        "unseen": unseen,
        "water": water,
    },
    "ts.json": {"geometry": geometry, "invariance": invariance, "saddles": saddles, "confidence": confidence},
    "correction.json": {"gradients": gradients},
    "barriers.json": {"barriers": barriers},
}
