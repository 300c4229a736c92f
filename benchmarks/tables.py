"""Write the tables of docs, the README and the model cards from benchmarks/results/*.json.

    python benchmarks/tables.py

Figures stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->` there; everything else is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path

import tables_targets
import tables_ts
from markdown import table

from molgen.workflows.draws import BAD_BOND, CONTACT, OUTSIDE, WRONG_CHIRALITY

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PROSE_PAPER = {"2": (".191", ".371", ".210", ""), "4": (".071", ".932", ".752", ".367")}  # ESS, E-, T-, TICA-W2
VIEWS = ("raw", "reweighted", "floor")


def prose_lengths(report: dict) -> str:
    """Means over the held-out sequences of each length."""
    rows = []
    for length, m in report["zero-shot"]["means"].items():
        again = [m["redrawn"].get(reason, 0) for reason in (WRONG_CHIRALITY, BAD_BOND, CONTACT, OUTSIDE)]
        rows.append(
            [
                f"{length} ({m['sequences']})",
                *(_figure(m[k]) for k in ("ess", "ess_psis", "ess_top_dropped", "ess_forward", "khat_max")),
                *(_three(m[k]) for k in ("e_w2", "t_w2", "tica_w2", "js_bonds")),
                f"{m['wrong_chirality']}, {m['broken_topology']}",
                f"{', '.join(map(str, again))} ({sum(again) / m['proposals']:.2%})",
                m["non_finite_energies"],
            ]
        )
        if length in PROSE_PAPER:
            ess, *distances = PROSE_PAPER[length]
            rows.append([f"{length}, Prose as published", "", "", ess, "", "", *distances, "", "", "", ""])
    return table(
        "residues (sequences) | ESS | smoothed | top 0.2 % dropped | forward ESS | k-hat, largest | E-W2, kT | T-W2 "
        "| TICA-W2 | JS of (psi, phi) | wrong chirality, broken topology "
        "| proposals drawn again: wrong chirality, bad bond, contact, outside | energy not finite",
        rows,
    )


def prose_headline(report: dict) -> str:
    """The short table of the README."""
    found, rows = report["zero-shot"]["rows"].values(), []
    for length, m in report["zero-shot"]["means"].items():
        least = min(row["weights"]["ess"] for row in found if str(row.get("residues")) == length)
        ess, _, distance, _ = PROSE_PAPER.get(length, ("", "", "", ""))
        figures = [f"{m['ess']:.3f}, {least:.3f}", _figure(m["khat_max"], 2), _three(m["t_w2"])]
        rows.append([f"{length} ({m['sequences']})", *figures, ess, distance])
    return table(
        "residues (sequences) | ESS: mean, least | k-hat, largest | T-W2 raw / reweighted (floor) | ESS published "
        "| T-W2 published",
        rows,
    )


def prose_sequences(report: dict) -> str:
    """A row a sequence."""
    rows = []
    for name, row in report["zero-shot"]["rows"].items():
        if "error" in row:
            rows.append([name, f"failed: {row['error']}", *[""] * 10])
            continue
        w, md, metrics = row["weights"], row["md"] or {}, row["metrics"] or {}
        cells = [name, row["atoms"], *(_figure(w[k]) for k in ("ess", "ess_psis", "khat")), w["verdict"]]
        cells += [_figure(md.get(k)) for k in ("ess_forward", "log_z_gap")] + [_figure(md.get("nll_per_dof"), 4)]
        rows.append([*cells, *(_three(metrics.get(k)) for k in ("e_w2", "t_w2", "tica_w2"))])
    return table(
        "sequence | atoms | ESS | smoothed | k-hat | verdict | forward ESS | ln Z gap | NLL a degree of freedom "
        "| E-W2, kT | T-W2 | TICA-W2",
        rows,
    )


def prose_training(report: dict) -> str:
    """Validation by minute of training."""
    return table(
        "minutes | step | NLL a degree of freedom | spread of log q + E/kT, kT | forward ESS",
        ([f"{row['seconds'] / 60:.0f}", f"{row['step']:,}", *_validation(row)] for row in report["rows"]),
    )


def prose_wide(report: dict) -> str:
    """Validation by minute of the training of a wider network."""
    return prose_training(report["wide"])


def prose_averages(report: dict) -> str:
    """Means of the weights before and after the last training."""
    return table(
        "share of the weights after | NLL a degree of freedom | spread, kT | forward ESS | of the shared set alone "
        "| ln w of *cis* bonds less that of *trans*",
        (
            [f"{row['share']:g}", *_validation(row), f"{row['forward_shared']:.3f}", f"{-row['cis_gap']:.1f}"]
            for row in report["averages"]
        ),
    )


def prose_finetuned(report: dict) -> str:
    """Before and after finetuning, each on its own fresh samples."""
    rows, pairs = [], []
    for name, row in report["finetune"]["rows"].items():
        if "error" in row:
            continue
        old, new = row["before"], row["weights"]
        if row["residues"] == 4:  # what the target is for
            pairs.append((old["ess"], new["ess"]))
        ess = [_figure(old["ess"]), _figure(new["ess"]), f"{new['ess'] / old['ess']:.1f}"]
        khat = [_figure(w["khat"]) for w in (old, new)]
        rows.append([name, *ess, *khat, f"{row['finetuning']['energy_calls']:,}"])
    if pairs:
        old, new = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        means = [f"{old:.3f}", f"{new:.3f}", f"{new / old:.1f}"]
        rows.append([f"mean of {len(pairs)} tetrapeptides", *means, "", "", ""])
    return table("sequence | ESS before | after | ratio | k-hat before | after | energies used", rows)


def prose_speed(report: dict) -> str:
    """Means by length: rates, and effective samples a second beside the dynamics."""
    found, against, rows = report["speed"]["rows"], report.get("against dynamics", {}), []
    dynamics = report.get("dynamics", {}).get("rows", {})
    for length in sorted({len(name) for name in found}):
        some = [name for name in found if len(name) == length and "error" not in found[name]]
        cells = [str(length)]
        for kind in ("samples", "energies"):
            cells += [f"{_mean(found[name][kind][n] for name in some):,.0f}" for n in ("1", "2")]
        done = [name for name in some if name in against]
        if done:
            ratios = [against[name]["over_dynamics"] for name in done]
            cells.append(f"{_mean(against[name]['ess_per_second'] for name in done):.1f}")
            cells.append(f"{_mean(dynamics[name]['independent_per_second'] for name in done):.2f}")
            cells.append(f"{_mean(ratios):.1f} ({min(ratios):.1f})")
            cells.append(f"{_mean(dynamics[name]['autocorrelation_ps'] for name in done):.0f}")
        rows.append([*cells, *[""] * (9 - len(cells))])
    return table(
        "residues | samples/s, 1 thread | 2 threads | energies/s, 1 process | 2 processes | ESS/s, energies included "
        "| MD, independent samples/s | ratio: mean (least) | autocorrelation of the slowest torsion, ps",
        rows,
    )


def prose_mixing(report: dict) -> str:
    """What an independent conformation costs replica exchange without and with moves to proposals."""
    rows = []
    for name, row in report["mixing"]["rows"].items():
        plain, moves = row["plain"], row["moves"]
        cells = [name, ", ".join(f"{share:.2f}" for share in moves["moved"])]
        cells.append(f"{plain['cpu_seconds_per_ps']:.2f}, {moves['cpu_seconds_per_ps']:.2f}")
        cells.append(f"{plain['autocorrelation_ps']:.1f}, {moves['autocorrelation_ps']:.1f}")
        rows.append([*cells, f"{row['gain']:.1f}"])
    return table(
        "sequence | a move changes the conformation, share at 310, 380, 470, 600 K | CPU s a ps: plain, with moves "
        "| autocorrelation of the slowest torsion, ps: plain, with moves | gain",
        rows,
    )


def cv_models(report: dict) -> str:
    """Model systems against exact answers, three seeds each."""
    rows = []
    for row in report["models"]:
        surface = " / ".join(_figure(row.get(f"rmse_{kind}")) for kind in ("path", "histogram", "bias"))
        delta = f"{row['delta_f_error']:+.3f} ({row['delta_f_sigma']:.3f})" if "delta_f_error" in row else "-"
        cells = [f"{row['system']}, seed {row['seed']}", *_cost(row), surface, delta, f"{row['log_z_error']:+.3f}"]
        rows.append([*cells, f"{row.get('ess_biased', row['ess']):.2f}, {row['khat_biased']:.2f}"])
    return table(
        "system | energies | s, one core | RMSE of the surface, kT: path / histogram / bias | ΔF error (its σ), kT "
        "| ln Z error | ESS, k-hat under the bias",
        rows,
    )


def cv_corrupted(report: dict) -> str:
    """A spoilt controller: means and worst of three seeds."""
    lines = []
    for shift in sorted({row["shift"] for row in report["corrupted"]}):
        rows = [row for row in report["corrupted"] if row["shift"] == shift]
        apart = [row["apart"] for row in rows]
        lines.append(
            [
                f"{shift:g}",
                f"{_mean(r['rmse_histogram'] for r in rows):.2f}",
                *(_mean_worst(abs(r[key]) for r in rows) for key in ("rmse_path", "delta_f_error")),
                f"{max(r['khat_biased'] for r in rows):.2f}",
                f"{min(apart):.2f} to {max(apart):.2f}",
                f"{sum(r['verdict'] != 'reliable' for r in rows)} of {len(rows)}",
                *(
                    _mean_worst(abs(r[key]) for r in rows)
                    for key in ("rmse_repaired", "delta_f_error_repaired", "halves", "memory")
                ),
                f"{sum(r['accepted'] for r in rows)} of {len(rows)}",
            ]
        )
    return table(
        "controller evaluated beside the point by, Å | histogram RMSE, kT | path RMSE, kT (worst) "
        "| ΔF error, kT (worst) | k-hat (worst) | histogram to path, kT (least to most) | verdict not `reliable` "
        "| repaired: RMSE, kT (worst) | ΔF error, kT (worst) | halves apart, kT (worst) | memory (worst) | accepted",
        lines,
    )


def cv_ablation(report: dict) -> str:
    """The double well without one part each, means of three seeds."""
    lines = []
    for name in dict.fromkeys(row["variant"] for row in report["ablation"]):
        rows = [row for row in report["ablation"] if row["variant"] == name]
        failed = [r["failed"] for r in rows if "failed" in r]
        if failed:
            lines.append([name, f"collapsed in {len(failed)} of {len(rows)} runs: {failed[0]}", "", "", "", ""])
            continue
        cells = [name, *(f"{_mean(r[key] for r in rows):.3f}" for key in ("rmse_path", "rmse_histogram"))]
        cells.append(f"{max(abs(r['delta_f_error']) for r in rows):.2f}")
        cells.append(f"{_mean(r['ess_biased'] for r in rows):.2f}")
        lines.append([*cells, f"{max(r['khat_biased'] for r in rows):.2f}"])
    return table(
        "double well | path RMSE, kT | histogram RMSE, kT | largest ΔF error, kT | ESS under the bias | largest k-hat",
        lines,
    )


def cv_paths(report: dict) -> str:
    """Shipped controllers by the paths that a density is averaged over."""
    return table(
        "shipped controller | paths | s, one core | ESS under the bias | k-hat | ln Z, error | ESS without it | k-hat",
        (
            [
                f"{r['controller']}, {r['samples']:,} samples",
                r["paths"],
                f"{r['seconds']:.0f}",
                f"{r['ess_biased']:.3f}",
                f"{r['khat_biased']:.2f}",
                f"{r['log_z_error']:.3f}",
                f"{r['ess']:.3f}",
                f"{r['khat']:.2f}",
            ]
            for r in report["paths"]
        ),
    )


def cv_sn2(report: dict) -> str:
    """Cl- + CH3Cl against metadynamics."""
    rows = []
    for row in report["sn2"]["rows"]:
        error = f" ± {row['barrier_sigma']:.2f}" if "barrier_sigma" in row else ""
        cells = [f"`molgen fes`, seed {row['seed']}", *_cost(row), f"{row['barrier']:.2f}{error}", f"{row['rmse']:.2f}"]
        cells.append(f"{row['swap_asymmetry']:.2f} ± {row['wells_sigma']:.2f}")
        rows.append([*cells, f"{row['khat_biased']:.2f}, {row['khat']:.2f}"])
    truth = report["sn2"]["reference"]
    barrier = f"{truth['barrier']:.2f} ± {truth['barrier_sigma']:.2f}"
    cells = [*_cost(truth), barrier, f"{truth['block_error']:.2f} (blocks)", "imposed", ""]
    rows.append(["umbrella sampling, MBAR (reference)", *cells])
    for name, row in report["sn2"].get("peers", {}).items():
        figures = [f"{row[key]:.2f}" for key in ("barrier", "rmse", "swap_asymmetry")]
        rows.append([name, *_cost(row), *figures, ""])
    return table(
        " | energies | s, one core | barrier, kcal/mol | RMSE, F < 12 kcal/mol | swap asymmetry "
        "| k-hat biased, unbiased",
        rows,
    )


def cv_ala2(report: dict) -> str:
    """Alanine dipeptide against metadynamics."""
    rows = []
    for row in report["ala2"]["rows"]:
        cells = [f"`molgen fes`, seed {row['seed']}", *_cost(row)]
        cells += [f"{row['delta_f']:.2f} ± {row['delta_f_sigma']:.2f}", f"{row['rmse']:.2f}"]
        rows.append([*cells, f"{row['khat_biased']:.2f}, {row['khat']:.2f}", f"{row['ess_biased']:.1%}"])
    truth = report["ala2"]["reference"]
    name = f"metadynamics, then its bias at rest, {truth['runs']} runs (reference)"
    delta = f"{truth['delta_f']:.2f} ± {truth['delta_f_sigma']:.2f}"
    rows.append([name, *_cost(truth), delta, f"{truth['block_rmse']:.2f} (blocks)", "", ""])
    return table(
        " | energies | s, one core | ΔF(φ > 0), kcal/mol | RMSE, F < 6 kcal/mol | k-hat biased, unbiased "
        "| ESS under the bias",
        rows,
    )


def _validation(row: dict) -> list[str]:
    """Validation figures of Prose: NLL, spread, forward ESS."""
    return [f"{row['val_nll']:.4f}", f"{row['val_spread']:.2f}", f"{row['val_forward']:.3f}"]


def _cost(row: dict) -> list[str]:
    return [f"{row['energies']:,}", f"{row['seconds']:.0f}"]


def _mean_worst(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{_mean(listed):.2f} ({max(listed):.2f})"


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _three(figures: dict | None) -> str:
    """Raw / reweighted (floor), three digits each."""
    if figures is None or figures["floor"] is None:
        return "-"
    raw, reweighted, floor = ("-" if figures[k] is None else f"{figures[k]:.3g}" for k in VIEWS)
    return f"{raw} / {reweighted} ({floor})"


def fill(path: Path, sections: dict[str, str]) -> None:
    """Replace what stands between the markers of each section that `path` has."""
    text = path.read_text(encoding="utf-8")
    for name, content in sections.items():
        pattern = re.compile(f"(<!-- {name}:begin -->).*?(<!-- {name}:end -->)", re.DOTALL)
        text = pattern.sub(lambda m, c=content: f"{m[1]}\n{c}\n{m[2]}", text)
    path.write_text(text, encoding="utf-8")


PROSE = {
    "zero-shot": (prose_headline, prose_lengths, prose_sequences),
    "finetune": (prose_finetuned,),
    "speed": (prose_speed,),
    "mixing": (prose_mixing,),
}
CARDS = [f"molgen/weights/{name}/README.md" for name in ("tsgen", "tsgen-gfn2", "prose")]
CV = {
    "models": cv_models,
    "corrupted": cv_corrupted,
    "ablation": cv_ablation,
    "paths": cv_paths,
    "sn2": cv_sn2,
    "ala2": cv_ala2,
}


def main() -> None:
    """Fill every marked section from the results at hand."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sections = {}
    for file, makers in tables_ts.MAKERS.items():
        report = json.loads((RESULTS / file).read_text()) if (RESULTS / file).exists() else {}
        sections |= {name: make(report) for name, make in makers.items() if name in report}
    if (RESULTS / "prose.json").exists():
        prose = json.loads((RESULTS / "prose.json").read_text())
        for part, makers in PROSE.items():
            if part in prose:
                sections |= {make.__name__: make(prose) for make in makers}
    if (RESULTS / "prose_training.json").exists():
        training = json.loads((RESULTS / "prose_training.json").read_text())
        sections |= {make.__name__: make(training) for make in (prose_training, prose_wide, prose_averages)}
    if (RESULTS / "cv.json").exists():
        cv = json.loads((RESULTS / "cv.json").read_text())
        sections |= {make.__name__: make(cv) for part, make in CV.items() if part in cv}
    everything = {file.name: json.loads(file.read_text()) for file in RESULTS.glob("*.json")}
    sections["targets"] = tables_targets.targets(everything)
    for path in ("docs/benchmarks.md", "docs/experiments.md", "README.md", *CARDS):
        if (ROOT / path).exists():
            fill(ROOT / path, sections)


if __name__ == "__main__":
    main()
