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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grow-ns", type=float, default=4.0)
    parser.add_argument("--rest-ns", type=float, default=12.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    o = parser.parse_args()
    run(o.grow_ns, o.rest_ns, o.seed, o.out)
