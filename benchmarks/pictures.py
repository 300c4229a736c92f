"""Errors of `molgen fes` and of metadynamics against energies spent and against seconds, on the same axes.

python benchmarks/pictures.py        docs/cv_sn2.png and docs/cv_ala2.png from benchmarks/results/cv.json
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = {
    "sn2": ("Cl⁻ + CH₃Cl, GFN2-xTB", "RMSE of the surface below 12 kcal/mol, kcal/mol"),
    "ala2": ("alanine dipeptide, ff14SB + OBC2", "RMSE of the surface below 6 kcal/mol, kcal/mol"),
}
POINTS = 8


def own_track(folder: Path, seconds: float, errors: Callable[[dict[str, np.ndarray], np.ndarray], dict]) -> list[dict]:
    """Errors of a finished run by how many samples count: of the rounds under the resting bias, then the final ones.

    Args:
        seconds: of the whole run, shared out by energies.
        errors: figures from the collective variables by name (n,) and weights (n,) of the first samples.
    """
    from molgen.reweight.ensemble import Ensemble
    from molgen.reweight.importance import normalised

    ensemble, summary = Ensemble.load(folder), json.loads((folder / "summary.json").read_text())
    total = summary["energy_calls"]
    track = []
    for count in np.linspace(len(ensemble) / POINTS, len(ensemble), POINTS).astype(int):
        good = np.isfinite(ensemble.log_weights[:count])
        weights = normalised(ensemble.log_weights[:count])[good]
        values = {name: cv.values[:count][good] for name, cv in ensemble.cvs.items()}
        energies = total - len(ensemble) + count
        track.append({"energies": int(energies), "seconds": seconds * energies / total, **errors(values, weights)})
    return track


def draw(name: str, report: dict) -> None:
    """One picture: two panels, a line a run."""
    import matplotlib.pyplot as plt

    title, label = SYSTEMS[name]
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for run, track in report["tracks"].items():
        ours = run.startswith("molgen")
        style = {"color": "#c8501e" if ours else "#5b6b7b", "marker": "o" if ours else None, "markersize": 3}
        for panel, key in zip(panels, ("energies", "seconds"), strict=True):
            panel.plot([row[key] for row in track], [row["rmse"] for row in track], lw=1.2, **style)
    for panel, key in zip(panels, ("energies", "processor seconds, one core"), strict=True):
        panel.set(xscale="log", yscale="log", xlabel=key)
        panel.grid(alpha=0.3, which="both")
    for which in (panels[0].yaxis.set_major_formatter, panels[0].yaxis.set_minor_formatter):
        which(lambda value, _: f"{value:g}" if f"{value:g}".strip("0.")[0] in "1234" else "")
    panels[0].set_ylabel(label)
    for text, color in (("molgen fes", "#c8501e"), ("well-tempered metadynamics", "#5b6b7b")):
        panels[1].plot([], [], color=color, label=text)
    panels[1].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(ROOT / "docs" / f"cv_{name}.png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    results = json.loads((ROOT / "benchmarks/results/cv.json").read_text())
    for system in SYSTEMS:
        if results.get(system, {}).get("tracks"):
            draw(system, results[system])
