"""What the tests of `molgen ts` share: the examples, weights whose guesses are known, calculators that misbehave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from ase.calculators.calculator import Calculator, all_changes

from molgen.checkpoint import save_checkpoint
from molgen.potentials.xtb import XtbPotential
from molgen.tsgen.model import TSModel
from molgen.workflows.ts import TSResult, find_ts

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
EXPECTED: dict[str, dict[str, Any]] = json.loads((EXAMPLES / "expected.json").read_text())["reactions"]


def molfile(path: Path, *smiles: str) -> Path:
    """An MDL file of molecules with hydrogens and coordinates."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    with Chem.SDWriter(str(path)) as writer:
        for text in smiles:
            made = Chem.AddHs(Chem.MolFromSmiles(text))
            AllChem.EmbedMolecule(made, randomSeed=1)
            writer.write(made)
    return path


def sides(name: str) -> tuple[list[Path], list[Path]]:
    """Files of reactant and product of an example."""
    reactant, product = ([EXAMPLES / name / file for file in EXPECTED[name][side]] for side in ("reactant", "product"))
    return reactant, product


def noise_weights(folder: Path) -> Path:
    """Weights that move nothing: sample 0 is the sqrt-distance guess, sample k that guess with noise of 0.1 A.

    Guesses are then distinct and known whatever weights are shipped.
    """
    torch.manual_seed(0)
    model = TSModel([1, 6, 7, 8], scalars=16, vectors=8, pair=16, layers=1)
    torch.nn.init.zeros_(model.displace.weight)
    save_checkpoint(folder, model.state_dict(), {"model": "tsgen", "config": model.config})
    return folder


def hcn_search(*, weights: Path, **options: Any) -> TSResult:
    """find_ts on HCN -> HNC with the noise weights, three samples unless told otherwise."""
    return find_ts(*sides("hcn"), **{"weights": weights, "samples": 3, **options})


class FailingAt(XtbPotential):
    """GFN2-xTB that fails at the given geometries (None: everywhere): "raise", "nan", or "interrupt" (Ctrl-C there)."""

    def __init__(self, numbers, geometries: Sequence[np.ndarray] | None, how: str):
        super().__init__(numbers)
        self.geometries, self.how = geometries, how

    def _evaluate_one(self, positions, forces):
        if self.geometries is not None and not any(np.abs(positions - x).max() < 1e-6 for x in self.geometries):
            return super()._evaluate_one(positions, forces)
        if self.how == "raise":
            raise RuntimeError("SCF not converged")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        return float("nan"), np.full_like(positions, np.nan)


class NoSaddle(Calculator):
    """Every atom on a spring to a place of its own: one minimum, no saddle."""

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, stiffness: float = 5.0):
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        x = self.atoms.positions
        place = np.array([[1.5 * k, k % 2, 0.3 * k] for k in range(len(x))])
        shift = x - place
        self.results = {"energy": 0.5 * self.stiffness * (shift**2).sum(), "forces": -self.stiffness * shift}


class Unreliable(Calculator):
    """GFN2-xTB that fails, for good or once, or waits, from its n-th gradient on.

    Args:
        fail_at: gradients (counted from 1) that raise. always: every gradient raises.
        wait_at: the gradient that creates the file `marker` and then sleeps until it is interrupted.
    """

    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, fail_at: Sequence[int] = (), always: bool = False, wait_at: int = 0, marker: str = ""):
        super().__init__()
        self.fail_at, self.always, self.wait_at, self.marker = set(fail_at), always, wait_at, marker
        self.count = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.count += 1
        if self.always or self.count in self.fail_at:
            raise RuntimeError("SCF not converged")
        if self.count == self.wait_at:
            Path(self.marker).write_text(str(os.getpid()))
            time.sleep(300)
        energy, forces = XtbPotential(self.atoms.numbers).energy_and_forces(self.atoms.positions[None])
        self.results = {"energy": float(energy[0]), "forces": forces[0]}
