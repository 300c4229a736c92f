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

from molgen.workflows.draws import BAD_BOND, CONTACT, OUTSIDE, WRONG_CHIRALITY

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PROSE_PAPER = {"2": (".191", ".371", ".210", ""), "4": (".071", ".932", ".752", ".367")}  # ESS, E-, T-, TICA-W2
VIEWS = ("raw", "reweighted", "floor")


def prose_lengths(report: dict) -> str:
    """Means over the held-out sequences of each length."""
    lines = [
        "| residues (sequences) | ESS | smoothed | top 0.2 % dropped | forward ESS | k-hat, largest "
        "| E-W2, kT | T-W2 | TICA-W2 | JS of (psi, phi) | wrong chirality, broken topology "
        "| proposals drawn again: wrong chirality, bad bond, contact, outside | energy not finite |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for length, m in report["zero-shot"]["means"].items():
        cells = [
            f"{length} ({m['sequences']})",
            *(_figure(m[k]) for k in ("ess", "ess_psis", "ess_top_dropped", "ess_forward")),
        ]
        cells.append(_figure(m["khat_max"]))
        cells += [_three(m[k]) for k in ("e_w2", "t_w2", "tica_w2", "js_bonds")]
        again = [m["redrawn"].get(reason, 0) for reason in (WRONG_CHIRALITY, BAD_BOND, CONTACT, OUTSIDE)]
        cells.append(f"{m['wrong_chirality']}, {m['broken_topology']}")
        cells.append(f"{', '.join(map(str, again))} ({sum(again) / m['proposals']:.2%})")
        cells.append(str(m["non_finite_energies"]))
        lines.append(f"| {' | '.join(cells)} |")
        if length in PROSE_PAPER:
            ess, *distances = PROSE_PAPER[length]
            lines.append(f"| {length}, Prose as published | | | {ess} | | | {' | '.join(distances)} | | | | |")
    return "\n".join(lines)


def prose_headline(report: dict) -> str:
    """The short table of the README."""
    lines = [
        "| residues (sequences) | ESS: mean, least | k-hat, largest | T-W2 raw / reweighted (floor) | ESS published "
        "| T-W2 published |",
        "|---|---|---|---|---|---|",
    ]
    rows = report["zero-shot"]["rows"].values()
    for length, m in report["zero-shot"]["means"].items():
        least = min(row["weights"]["ess"] for row in rows if str(row.get("residues")) == length)
        ess, _, distance, _ = PROSE_PAPER.get(length, ("", "", "", ""))
        cells = [f"{length} ({m['sequences']})", f"{m['ess']:.3f}, {least:.3f}", _figure(m["khat_max"], 2)]
        lines.append(f"| {' | '.join([*cells, _three(m['t_w2']), ess, distance])} |")
    return "\n".join(lines)


def prose_sequences(report: dict) -> str:
    """A row a sequence."""
    lines = [
        "| sequence | atoms | ESS | smoothed | k-hat | verdict | forward ESS | ln Z gap | NLL a degree of freedom "
        "| E-W2, kT | T-W2 | TICA-W2 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["zero-shot"]["rows"].items():
        if "error" in row:
            lines.append(f"| {name} | failed: {row['error']} |" + " |" * 10)
            continue
        w, md, metrics = row["weights"], row["md"] or {}, row["metrics"] or {}
        cells = [name, str(row["atoms"]), *(_figure(w[k]) for k in ("ess", "ess_psis", "khat")), w["verdict"]]
        cells += [_figure(md.get(k)) for k in ("ess_forward", "log_z_gap")] + [_figure(md.get("nll_per_dof"), 4)]
        cells += [_three(metrics.get(k)) for k in ("e_w2", "t_w2", "tica_w2")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prose_training(report: dict) -> str:
    """Validation by minute of training."""
    lines = [
        "| minutes | step | NLL a degree of freedom | spread of log q + E/kT, kT | forward ESS |",
        "|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        figures = f"{row['val_nll']:.4f} | {row['val_spread']:.2f} | {row['val_forward']:.3f}"
        lines.append(f"| {row['seconds'] / 60:.0f} | {row['step']:,} | {figures} |")
    return "\n".join(lines)


def prose_wide(report: dict) -> str:
    """Validation by minute of the training of a wider network."""
    return prose_training(report["wide"])


def prose_averages(report: dict) -> str:
    """Means of the weights before and after the last training."""
    lines = [
        "| share of the weights after | NLL a degree of freedom | spread, kT | forward ESS | of the shared set alone | "
        "ln w of *cis* bonds less that of *trans* |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["averages"]:
        cells = [f"{row['share']:g}", f"{row['val_nll']:.4f}", f"{row['val_spread']:.2f}", f"{row['val_forward']:.3f}"]
        cells += [f"{row['forward_shared']:.3f}", f"{-row['cis_gap']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prose_finetuned(report: dict) -> str:
    """Before and after finetuning, each on its own fresh samples."""
    lines = [
        "| sequence | ESS before | after | ratio | k-hat before | after | energies used |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs = []
    for name, row in report["finetune"]["rows"].items():
        if "error" in row:
            continue
        old, new = row["before"], row["weights"]
        if row["residues"] == 4:  # what the target is for
            pairs.append((old["ess"], new["ess"]))
        cells = [name, _figure(old["ess"]), _figure(new["ess"]), f"{new['ess'] / old['ess']:.1f}"]
        cells += [_figure(w["khat"]) for w in (old, new)]
        lines.append(f"| {' | '.join(cells)} | {row['finetuning']['energy_calls']:,} |")
    if pairs:
        old, new = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        lines.append(f"| mean of {len(pairs)} tetrapeptides | {old:.3f} | {new:.3f} | {new / old:.1f} | | | |")
    return "\n".join(lines)


def prose_speed(report: dict) -> str:
    """Means by length: rates, and effective samples a second beside the dynamics."""
    lines = [
        "| residues | samples/s, 1 thread | 2 threads | energies/s, 1 process | 2 processes | ESS/s, energies included "
        "| MD, independent samples/s | ratio: mean (least) | autocorrelation of the slowest torsion, ps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows, against = report["speed"]["rows"], report.get("against dynamics", {})
    dynamics = report.get("dynamics", {}).get("rows", {})
    for length in sorted({len(name) for name in rows}):
        some = [name for name in rows if len(name) == length and "error" not in rows[name]]
        cells = [str(length)]
        for kind in ("samples", "energies"):
            cells += [f"{_mean(rows[name][kind][n] for name in some):,.0f}" for n in ("1", "2")]
        done = [name for name in some if name in against]
        if done:
            ratios = [against[name]["over_dynamics"] for name in done]
            cells.append(f"{_mean(against[name]['ess_per_second'] for name in done):.1f}")
            cells.append(f"{_mean(dynamics[name]['independent_per_second'] for name in done):.2f}")
            cells.append(f"{_mean(ratios):.1f} ({min(ratios):.1f})")
            cells.append(f"{_mean(dynamics[name]['autocorrelation_ps'] for name in done):.0f}")
        lines.append(f"| {' | '.join([*cells, *[''] * (9 - len(cells))])} |")
    return "\n".join(lines)


def prose_mixing(report: dict) -> str:
    """What an independent conformation costs replica exchange without and with moves to proposals."""
    lines = [
        "| sequence | a move changes the conformation, share at 310, 380, 470, 600 K | CPU s a ps: plain, with moves "
        "| autocorrelation of the slowest torsion, ps: plain, with moves | gain |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["mixing"]["rows"].items():
        plain, moves = row["plain"], row["moves"]
        cells = [name, ", ".join(f"{share:.2f}" for share in moves["moved"])]
        cells.append(f"{plain['cpu_seconds_per_ps']:.2f}, {moves['cpu_seconds_per_ps']:.2f}")
        cells.append(f"{plain['autocorrelation_ps']:.1f}, {moves['autocorrelation_ps']:.1f}")
        lines.append(f"| {' | '.join(cells)} | {row['gain']:.1f} |")
    return "\n".join(lines)


def cv_models(report: dict) -> str:
    """Model systems against exact answers, three seeds each."""
    lines = [
        "| system | energies | s, one core | RMSE of the surface, kT: path / histogram / bias | ΔF error (its σ), kT | "
        "ln Z error | ESS, k-hat under the bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["models"]:
        surface = " / ".join(_figure(row.get(f"rmse_{kind}")) for kind in ("path", "histogram", "bias"))
        delta = f"{row['delta_f_error']:+.3f} ({row['delta_f_sigma']:.3f})" if "delta_f_error" in row else "-"
        ess = row.get("ess_biased", row["ess"])
        lines.append(
            f"| {row['system']}, seed {row['seed']} | {row['energies']:,} | {row['seconds']:.0f} | {surface} | "
            f"{delta} | "
            f"{row['log_z_error']:+.3f} | {ess:.2f}, {row['khat_biased']:.2f} |"
        )
    return "\n".join(lines)


def cv_corrupted(report: dict) -> str:
    """A spoilt controller: means and worst of three seeds."""
    lines = [
        "| controller evaluated beside the point by, Å | histogram RMSE, kT | path RMSE, kT (worst) | "
        "ΔF error, kT (worst) | k-hat (worst) | histogram to path, kT (least to most) | verdict not `reliable` | "
        "repaired: RMSE, kT (worst) | ΔF error, kT (worst) | halves apart, kT (worst) | memory (worst) | accepted |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shift in sorted({row["shift"] for row in report["corrupted"]}):
        rows = [row for row in report["corrupted"] if row["shift"] == shift]
        path, delta = [r["rmse_path"] for r in rows], [abs(r["delta_f_error"]) for r in rows]
        lines.append(
            f"| {shift:g} | {_mean(r['rmse_histogram'] for r in rows):.2f} | {_mean(path):.2f} ({max(path):.2f}) | "
            f"{_mean(delta):.2f} ({max(delta):.2f}) | {max(r['khat_biased'] for r in rows):.2f} | "
            f"{min(r['apart'] for r in rows):.2f} to {max(r['apart'] for r in rows):.2f} | "
            f"{sum(r['verdict'] != 'reliable' for r in rows)} of {len(rows)} | "
            + " | ".join(
                f"{_mean(values):.2f} ({max(values):.2f})"
                for values in (
                    [abs(r[key]) for r in rows]
                    for key in ("rmse_repaired", "delta_f_error_repaired", "halves", "memory")
                )
            )
            + f" | {sum(r['accepted'] for r in rows)} of {len(rows)} |"
        )
    return "\n".join(lines)


def cv_ablation(report: dict) -> str:
    """The double well without one part each, means of three seeds."""
    lines = [
        "| double well | path RMSE, kT | histogram RMSE, kT | largest ΔF error, kT | ESS under the bias | "
        "largest k-hat |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["variant"] for row in report["ablation"]):
        rows = [row for row in report["ablation"] if row["variant"] == name]
        failed = [r["failed"] for r in rows if "failed" in r]
        if failed:
            lines.append(f"| {name} | collapsed in {len(failed)} of {len(rows)} runs: {failed[0]} | | | | |")
            continue
        worst = max(abs(r["delta_f_error"]) for r in rows)
        lines.append(
            f"| {name} | {_mean(r['rmse_path'] for r in rows):.3f} | {_mean(r['rmse_histogram'] for r in rows):.3f} | "
            f"{worst:.2f} | {_mean(r['ess_biased'] for r in rows):.2f} | {max(r['khat_biased'] for r in rows):.2f} |"
        )
    return "\n".join(lines)


def cv_paths(report: dict) -> str:
    """Shipped controllers by the paths that a density is averaged over."""
    lines = [
        "| shipped controller | paths | s, one core | ESS under the bias | k-hat | ln Z, error | ESS without it | "
        "k-hat |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in report["paths"]:
        lines.append(
            f"| {r['controller']}, {r['samples']:,} samples | {r['paths']} | {r['seconds']:.0f} | "
            f"{r['ess_biased']:.3f} | {r['khat_biased']:.2f} | {r['log_z_error']:.3f} | {r['ess']:.3f} | "
            f"{r['khat']:.2f} |"
        )
    return "\n".join(lines)


def cv_sn2(report: dict) -> str:
    """Cl- + CH3Cl against metadynamics."""
    lines = [
        "| | energies | s, one core | barrier, kcal/mol | RMSE, F < 12 kcal/mol | swap asymmetry | "
        "k-hat biased, unbiased |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["sn2"]["rows"]:
        lines.append(
            f"| `molgen fes`, seed {row['seed']} | {row['energies']:,} | {row['seconds']:.0f} | "
            f"{row['barrier']:.2f}{' ± {:.2f}'.format(row['barrier_sigma']) if 'barrier_sigma' in row else ''} | "
            f"{row['rmse']:.2f} | {row['swap_asymmetry']:.2f} ± {row['wells_sigma']:.2f} | {row['khat_biased']:.2f}, "
            f"{row['khat']:.2f} |"
        )
    truth = report["sn2"]["reference"]
    lines.append(
        f"| umbrella sampling, MBAR (reference) | {truth['energies']:,} | {truth['seconds']:.0f} | "
        f"{truth['barrier']:.2f} ± {truth['barrier_sigma']:.2f} | {truth['block_error']:.2f} (blocks) | imposed | |"
    )
    for name, row in report["sn2"].get("peers", {}).items():
        lines.append(
            f"| {name} | {row['energies']:,} | {row['seconds']:.0f} | {row['barrier']:.2f} | {row['rmse']:.2f} | "
            f"{row['swap_asymmetry']:.2f} | |"
        )
    return "\n".join(lines)


def cv_ala2(report: dict) -> str:
    """Alanine dipeptide against metadynamics."""
    lines = [
        "| | energies | s, one core | ΔF(φ > 0), kcal/mol | RMSE, F < 6 kcal/mol | k-hat biased, unbiased | "
        "ESS under the bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["ala2"]["rows"]:
        lines.append(
            f"| `molgen fes`, seed {row['seed']} | {row['energies']:,} | {row['seconds']:.0f} | {row['delta_f']:.2f} ± "
            f"{row['delta_f_sigma']:.2f} | {row['rmse']:.2f} | {row['khat_biased']:.2f}, {row['khat']:.2f} | "
            f"{row['ess_biased']:.1%} |"
        )
    truth = report["ala2"]["reference"]
    lines.append(
        f"| metadynamics, then its bias at rest, {truth['runs']} runs (reference) | {truth['energies']:,} | "
        f"{truth['seconds']:.0f} | {truth['delta_f']:.2f} ± {truth['delta_f_sigma']:.2f} | {truth['block_rmse']:.2f} "
        "(blocks) | | |"
    )
    return "\n".join(lines)


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
