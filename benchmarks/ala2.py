"""Alanine dipeptide, ff14SB and GB OBC2, 300 K: the reference of benchmarks/cv.py for phi and psi.

    python benchmarks/ala2.py --seed 0 --out runs/ala2-metad-0

Well-tempered metadynamics (`openmm.app.Metadynamics`) fills the surface; then its bias rests, dynamics go on under it
and are reweighted by it, which is exact for a bias at rest. `metadynamics.npz`: phi, psi and bias of every 0.5 ps under
the resting bias, and the surface of the bias against energies spent while it grew.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

T, GAMMA, HEIGHT, WIDTH = 300.0, 12.0, 1.2, 0.35  # K; bias factor; kJ/mol; rad
DEPOSIT, RECORD, BINS = 250, 250, 36  # steps; steps; of 10 degrees
STEP_PS, HYDROGEN = 0.002, 3.0  # heavier hydrogens leave the distribution of configurations alone
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
CVS = [f"{name} = torsion {' '.join(map(str, atoms))}" for name, atoms in (("phi", PHI), ("psi", PSI))]
PDB = Path(__file__).parent.parent / "examples/fes_ala2/ala2.pdb"
EDGES = np.linspace(-np.pi, np.pi, BINS + 1)


def molecule():
    """The system as `molgen fes --pdb` builds it."""
    from molgen.workflows.fes_system import system_from_pdb

    return system_from_pdb([PDB], ["amber14/protein.ff14SB.xml"], "obc2")


def run(grow_ns: float, rest_ns: float, seed: int, out: Path) -> None:
    """Grow the bias, let it rest, write what comparisons need."""
    import openmm as mm
    from openmm import app, unit

    from molgen.potentials.openmm import native_gbsa

    pdb = app.PDBFile(str(PDB))
    field = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml")
    system = native_gbsa(
        field.createSystem(
            pdb.topology,
            nonbondedMethod=app.NoCutoff,
            constraints=None,
            removeCMMotion=False,
            hydrogenMass=HYDROGEN * unit.amu,
        )  # fmt: skip
    )
    variables = []
    for atoms in (PHI, PSI):
        force = mm.CustomTorsionForce("theta")
        force.addTorsion(*atoms, [])
        variables.append(app.BiasVariable(force, -np.pi, np.pi, WIDTH, True, 180))
    metad = app.Metadynamics(system, variables, T, GAMMA, HEIGHT, DEPOSIT)
    integrator = mm.LangevinMiddleIntegrator(T, 1.0, STEP_PS)
    integrator.setRandomNumberSeed(seed + 1)
    simulation = app.Simulation(pdb.topology, system, integrator, mm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(T, seed + 1)
    begin, growth = time.process_time(), []
    for part in range(20):
        metad.step(simulation, round(grow_ns * 1000 / STEP_PS / 20))
        free = metad.getFreeEnergy().value_in_unit(unit.kilocalories_per_mole)
        growth.append((round((part + 1) * grow_ns * 1000 / STEP_PS / 20), time.process_time() - begin, free))
        print(f"{growth[-1][0]} steps, {growth[-1][1]:.0f} s", flush=True)
    rows, group = [], metad._force.getForceGroup()
    for _ in range(round(rest_ns * 1000 / STEP_PS / RECORD)):
        simulation.step(RECORD)
        state = simulation.context.getState(getEnergy=True, groups={group})
        bias = state.getPotentialEnergy().value_in_unit(unit.kilojoules_per_mole)
        rows.append((*metad.getCollectiveVariables(simulation), bias))
    out.mkdir(parents=True, exist_ok=True)
    steps, seconds, free = zip(*growth, strict=True)
    np.savez_compressed(
        out / "metadynamics.npz", rows=np.array(rows, dtype=np.float32), steps=steps, seconds=seconds,
        free=np.array(free, dtype=np.float32), seconds_all=time.process_time() - begin,
        steps_all=steps[-1] + len(rows) * RECORD,
    )  # fmt: skip


def surface(phi: np.ndarray, psi: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(36, 36) kcal/mol, lowest 0, NaN where there is nothing."""
    from molgen.units import KB, KCAL_MOL

    share = np.histogram2d(phi, psi, [EDGES, EDGES], weights=weights)[0]
    free = -KB * T / KCAL_MOL * np.log(np.where(share > 0, share, np.nan))
    return free - np.nanmin(free)


def difference(phi: np.ndarray, weights: np.ndarray) -> float:
    """Free energy of phi > 0 above that of phi < 0, kcal/mol."""
    from molgen.units import KB, KCAL_MOL

    return float(-KB * T / KCAL_MOL * np.log(weights[phi > 0].sum() / weights[phi < 0].sum()))


def apart(mine: np.ndarray, truth: np.ndarray, top: float = 6.0) -> tuple[float, int]:
    """Root mean square difference where the truth is below `top` kcal/mol, constants removed; bins not visited."""
    low = truth < top
    seen = low & np.isfinite(mine)
    return float(np.std((mine - truth)[seen])), int((low & ~seen).sum())


def row(seed: int, out: Path) -> dict:
    """`molgen fes` with its defaults, from one conformation."""
    from molgen.units import KCAL_MOL
    from molgen.workflows.fes import run_fes
    from molgen.workflows.fes_problem import coordinates_of
    from molgen.workflows.fes_settings import default_settings

    begin, system = time.process_time(), molecule()
    settings = default_settings(coordinates_of(system, "auto"))
    ensemble, summary = run_fes(system, CVS, T, settings=settings, seed=seed, out=out / f"ala2-{seed}", resume=True)
    phi, psi = (ensemble.cvs[name].values for name in ("phi", "psi"))
    delta, good = ensemble.free_energy(phi < 0, phi > 0), np.isfinite(phi)
    return {
        "system": "ala2", "seed": seed, "seconds": time.process_time() - begin, "energies": summary["energy_calls"],
        "delta_f": delta.value / KCAL_MOL, "delta_f_sigma": delta.error / KCAL_MOL, "delta_f_khat": delta.khat,
        "surface": surface(phi[good], psi[good], ensemble.weights[good]).tolist(),
        "khat_biased": summary["gate"]["khat_biased"], "ess_biased": summary["weights_biased"]["ess"],
        "khat": summary["weights"]["khat"], "disagreement_kt": summary["disagreement_kt"],
    }  # fmt: skip


def report(rows: list[dict], folder: Path, out: Path, blocks: int = 5) -> dict:
    """Errors against the metadynamics in `folder`; of these among themselves and while they grew; of runs in `out`."""
    from pictures import own_track

    from molgen.units import KB, KCAL_MOL, KJ_MOL

    stored = [np.load(path) for path in sorted(folder.glob("ala2-metad-*/metadynamics.npz"))]
    parts = [part for run_ in stored for part in np.array_split(run_["rows"].astype(float), blocks)]
    weights = [np.exp(part[:, 2] * KJ_MOL / (KB * T)) for part in parts]
    alone = [difference(part[:, 0], w) for part, w in zip(parts, weights, strict=True)]
    every = np.concatenate(parts)
    # each run's bias has a constant of its own
    shares = np.concatenate([w / w.sum() for w in weights])
    truth = surface(every[:, 0], every[:, 1], shares)
    delta = float(np.mean(alone))
    halves = [surface(p[:, 0], p[:, 1], w) for p, w in zip(parts, weights, strict=True)]
    found = []
    for one in rows:
        rmse, missing = apart(np.array(one["surface"], dtype=float), truth)
        found.append({**one, "delta_f_error": one["delta_f"] - delta, "rmse": rmse, "missing_bins": missing})
        del found[-1]["surface"]

    def errors(values: dict, weights: np.ndarray) -> dict:
        mine = surface(values["phi"], values["psi"], weights)
        return {"rmse": apart(mine, truth)[0], "delta_f_error": difference(values["phi"], weights) - delta}

    tracks = {f"molgen fes, seed {r['seed']}": own_track(out / f"ala2-{r['seed']}", r["seconds"], errors) for r in rows}
    for number, run_ in enumerate(stored):
        centres = np.linspace(-np.pi, np.pi, run_["free"].shape[1])
        phi, psi = np.meshgrid(centres, centres)  # openmm's first axis is the last variable
        track = []
        for steps, seconds, free in zip(run_["steps"], run_["seconds"], run_["free"].astype(float), strict=True):
            w = np.exp(-(free - free.min()) * KCAL_MOL / (KB * T))
            mine = surface(phi.ravel(), psi.ravel(), w.ravel())
            track.append({"energies": int(steps), "seconds": float(seconds), "rmse": apart(mine, truth)[0],
                          "delta_f_error": difference(phi.ravel(), w.ravel()) - delta})  # fmt: skip
        tracks[f"well-tempered metadynamics, seed {number}"] = track
    reference = {
        "delta_f": delta, "delta_f_sigma": float(np.std(alone, ddof=1) / len(alone) ** 0.5),
        "energies": int(sum(r["steps_all"] for r in stored)), "seconds": float(sum(r["seconds_all"] for r in stored)),
        "block_rmse": float(np.mean([apart(h, truth)[0] for h in halves]) / len(halves) ** 0.5), "runs": len(stored),
    }  # fmt: skip
    return {"reference": reference, "rows": found, "tracks": tracks}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grow-ns", type=float, default=4.0)
    parser.add_argument("--rest-ns", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    run(o.grow_ns, o.rest_ns, o.seed, o.out)
