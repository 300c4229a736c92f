"""The tables of TS-GEN, for tables.py."""

from __future__ import annotations

ROWS = (
    ("TS-GEN, one guess", "molgen"),
    ("sqrt-distance guess", "sqrt"),
    ("CI-NEB (ASE)", "neb"),
    ("true DFT TS", "dft"),
)


def geometry(report: dict) -> str:
    """Errors of guesses on the test split."""
    g = report["geometry"]
    lines = [
        f"| {g['n']} test reactions | TS-GEN | sqrt-distance | midpoint | ts_gen GNN, published |",
        "|---|---|---|---|---|",
    ]
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
        lines.append(f"| {title} | {' | '.join(shown)} | {peers.get(key, '')} |")
    per_guess = f"{g['seconds_per_guess'] * 1000:.0f} ms a guess at batch 32"
    quantiles = ", ".join(f"{q:.3f}" for q in g["rmsd_quantiles"])
    return "\n".join([*lines, "", f"{per_guess}; RMSD at the 10, 25, 75 and 90 % quantile: {quantiles} Å."])


def invariance(report: dict) -> str:
    """Largest change of a guess when the same reaction is presented differently."""
    keys = ("rotation", "atom_order", "fragment_placement", "exchange_of_sides")
    lines = ["| largest change of a guess, Å | rotation | atom order | fragment placement | exchange of R and P |"]
    lines.append("|---|---|---|---|---|")
    for title, part in (("one product", "single"), ("several products", "multi_fragment")):
        row = report["invariance"][part]
        lines.append(f"| {title} ({row['n']} reactions) | " + " | ".join(f"{row[k]['max']:.0e}" for k in keys) + " |")
    return "\n".join(lines)


def saddles(report: dict) -> str:
    """Intended saddles and gradient calls by origin of the guess."""
    table = report["saddles"]
    lines = [
        "| guess | intended | half | unintended | not a saddle, not converged, failed "
        "| calls: guess + refinement, mean | calls: verification, mean | guess + refinement calls per intended |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, key in ROWS:
        if key in table:
            r = table[key]
            rest = r["not_a_saddle"] + r["not_converged"] + r["failed"]
            shares = " | ".join(f"{v:.1%}" for v in (r["intended"], r["half"], r["unintended"], rest))
            search = r["calls_guess_mean"] + r["calls_refine_mean"]
            calls = f"{search:.0f} | {r['calls_verify_mean']:.0f} | {r['calls_search_per_intended']:.0f}"
            lines.append(f"| {title} | {shares} | {calls} |")
    if "ranked" in report:
        r = report["ranked"]
        rest = 1 - r.get("intended", 0) - r.get("half", 0) - r.get("unintended", 0)
        several = r.get("several_steps", 0)
        first = f"{r.get('intended', 0):.1%}" + (f", and {several:.1%} in several steps" if several else "")
        others = (r.get("half", 0) - r.get("half_in_steps", 0), r.get("unintended", 0), rest)
        shares = " | ".join([first, *(f"{value:.1%}" for value in others)])
        lines.append(
            f"| `molgen ts` ({r['n']} reactions; 8 samples, ranked) | {shares} | all calls: {r['calls_mean']:.0f} | | |"
        )
    return "\n".join(lines)


def confidence(report: dict) -> str:
    """Reliability of the confidence."""
    lines = [
        "| confidence | expected calibration error | area under ROC | predicted / observed by fifth |",
        "|---|---|---|---|",
    ]
    for title, key in (("of a raw guess", "guess"), ("after refinement", "refined")):
        r = report["confidence"][key]
        fifths = ", ".join(f"{b['predicted']:.2f} / {b['intended']:.2f}" for b in r["table"])
        lines.append(f"| {title} | {r['expected_calibration_error']:.3f} | {r['area_under_roc']:.2f} | {fifths} |")
    return "\n".join(lines)


def gradients(report: dict) -> str:
    """Errors after a few gradients, and from the saddle."""
    lines = [f"| {report['n']} test reactions | gradient calls, mean | RMSD median, Å | mean, Å | 75 % | 90 % |"]
    lines.append("|---|---|---|---|---|---|")
    calls = report["calls_mean"]  # of the two-level row, which adds two to the search
    rows = [("TS-GEN's guess", "0", report["gradients"][0])]
    rows += [
        (f"{k} x gradient, correction", str(k), figures)
        for k, figures in enumerate(report["gradients"])
        if k in (1, 2, 5)
    ]
    rows += [
        ("search of 5 calls, correction", "5", report["search_5_calls"]),
        ("GFN2-xTB saddle", f"{calls - 2:.0f}", report["saddle"]),
        ("GFN2-xTB saddle, corrected (two-level)", f"{calls:.0f}", report["two_level"]),
        ("of searches that converged: saddle", "", report["saddle_of_converged"]),
        ("of searches that converged: two-level", "", report["two_level_of_converged"]),
    ]
    for title, spent, f in rows:
        shown = " | ".join(f"{f[key]:.3f}" for key in ("median", "mean", "quantile_75", "quantile_90"))
        lines.append(f"| {title} | {spent} | {shown} |")
    fifths = ", ".join(f"{r['expected']:.2f} / {r['error_median']:.2f}" for r in report["expected_against_error"])
    return "\n".join(
        [*lines, "", f"Predicted error / median of the true one, Å, by fifths of the predicted one: {fifths}."]
    )


def barriers(report: dict) -> str:
    """Barrier errors at the level of DFT."""
    report = report["barriers"]
    ended = f"of the {report['converged']} searches that converged: saddle, corrected (two-level)"
    names = {
        "guess": "TS-GEN's guess",
        "two_level": "GFN2-xTB saddle, corrected (two-level)",
        "two_level_of_converged": ended,
    }
    lines = [f"| {report['n']} test reactions | mean | median | within 1 kcal/mol |", "|---|---|---|---|"]
    for key, title in names.items():
        f = report[key]
        lines.append(f"| {title} | {f['mean']:.2f} | {f['median']:.2f} | {f['within_1']:.0%} |")
    return "\n".join(lines)


def _outcome(row: dict) -> tuple[str, str, str]:
    """Verdict in words, and the barriers where they are those of the reaction."""
    verdict = row["verdict"].replace("_", " ")
    if verdict == "intended":
        verdict += ", another stereoisomer" if row["stereo"] else ""
        return verdict, f"{row['barrier_forward_kcal']:.1f}", f"{row['barrier_reverse_kcal']:.1f}"
    if (row.get("mechanism") or {}).get("complete"):
        steps = row["mechanism"]["steps"]
        return f"intended, in {len(steps)} steps", "; ".join(_barriers(step) for step in steps), ""
    lost, side = row.get("barrierless_kcal"), row.get("barrierless_side")
    return verdict + ("" if lost is None else f"; no barrier: the {side}'s pieces lose {lost:.0f} kcal/mol"), "", ""


def _barriers(step: dict) -> str:
    there, back = step["barrier_forward_kcal"], step["barrier_reverse_kcal"]
    return "none" if there is None else f"{there:.1f}, {back:.1f}"


def textbook(report: dict) -> str:
    """Named reactions from SMILES."""
    lines = [
        "| reaction | from SMILES | barrier there, back, kcal/mol | guess | gradient calls | s "
        "| from structures, atoms shuffled | barrier there |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["textbook"]:
        cells = [*_cells(row), *(_outcome(row["structures"])[:2] if "structures" in row else ["", ""])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ions(report: dict) -> str:
    """Named reactions of ions and radicals."""
    return said(report["ions"])


def elements(report: dict) -> str:
    """Named reactions of other elements and larger molecules."""
    return said(report["elements"])


def water(report: dict) -> str:
    """The ions in implicit water, beside what they do in the gas phase."""
    lines = [
        "| reaction | gas phase | barrier there, back, kcal/mol | in water | barrier there, back "
        "| Gibbs barrier above the reactants apart, rate | gradient calls | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    gas = {row["name"]: row for row in report["ions"]}
    for row in report["water"]:
        name = row["name"].removesuffix(", in water")
        pieces = ((row.get("thermochemistry") or {}).get("pieces") or {}).get("reactant")
        apart = f"{pieces['barrier_kcal']:.1f}" if pieces else ""
        apart += f", {pieces['rate']:.0e} {pieces['rate_unit']}" if pieces and pieces["rate"] is not None else ""
        before, after = _cells(gas[name]), _cells(row)
        lines.append(f"| {' | '.join([name, *before[1:3], *after[1:3], apart, *after[4:]])} |")
    return "\n".join(lines)


def said(rows: list[dict]) -> str:
    """Reactions with what is said of those without a proven saddle."""
    lines = [
        "| reaction | verdict | barrier there, back, kcal/mol | guess | gradient calls | s | wells of others |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        whole = (row.get("mechanism") or {}).get("complete")
        others = row["reason"] if row["verdict"] in ("half", "unintended") and not whole else ""
        gone = [f"the {side} is no minimum: it becomes {other}" for side, other in row.get("unstable", {}).items()]
        lines.append(f"| {' | '.join([*_cells(row), '; '.join(filter(None, [others, *gone]))])} |")
    return "\n".join(lines)


def _cells(row: dict) -> list[str]:
    verdict, there, back = _outcome(row)
    cells = [row["name"], verdict, ", ".join(filter(None, (there, back))), row.get("source", "")]
    found = row["verdict"] != "failed"
    return [*cells, *((f"{row['gradient_calls']}", f"{row['seconds']:.0f}") if found else ("", ""))]


MAKERS = {
    "textbook.json": {"textbook": textbook, "ions": ions, "elements": elements, "water": water},
    "ts.json": {"geometry": geometry, "invariance": invariance, "saddles": saddles, "confidence": confidence},
    "correction.json": {"gradients": gradients},
    "barriers.json": {"barriers": barriers},
}
