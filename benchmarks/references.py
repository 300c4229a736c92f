"""Reference ensembles of peptides as the repository keeps them: torsions and energies of two runs of `molgen data md`.

`benchmarks/references/SEQ.npz`, for run k of 0 and 1:

    angles_k (F, A)    int16 in units of pi / 32767: phi, psi, chi as `molgen.prose.evaluate.torsions` orders them
    energies_k (F,)    float32, kJ/mol
    flow_k ()          hash of the weights whose proposals were moves of the run, "" without
    temperature ()     K
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from molgen.data.md import SAME_TEMPERATURE, MDSet
from molgen.data.peptide import Peptide
from molgen.npz import read_npz, write_npz
from molgen.prose.evaluate import Conformations, Torsions, torsions
from molgen.units import KJ_MOL

FOLDER = Path(__file__).resolve().parent / "references"
UNIT = np.pi / 32767
RUNS = (0, 1)
_KEYS = ("temperature", *(f"{name}_{k}" for k in RUNS for name in ("angles", "energies", "flow")))


def save(runs: list[MDSet], temperature: float) -> Path:
    """Write the frames of two runs of one peptide at `temperature`."""
    arrays: dict[str, np.ndarray] = {"temperature": np.array(temperature)}
    for k, md in zip(RUNS, runs, strict=True):
        at = md.temperatures.tolist().index(temperature)
        found = torsions(md.peptide, md.positions[at])
        angles = np.concatenate([found.phi, found.psi, found.chi], axis=1)
        arrays |= {
            f"angles_{k}": np.rint(angles / UNIT).astype(np.int16),
            f"energies_{k}": (md.energies[at] / KJ_MOL).astype(np.float32),
            f"flow_{k}": np.array(md.flow),
        }
    return write_npz(FOLDER / f"{runs[0].sequence}.npz", arrays)


def load(peptide: Peptide, temperature: float) -> tuple[Conformations, Conformations] | None:
    """The two runs of a peptide, None where there is no file or one of another temperature."""
    path = FOLDER / f"{peptide.sequence}.npz"
    if not path.exists():
        return None
    arrays = read_npz(path, _KEYS, expected="a reference of this folder", remedy="check it out again")
    if abs(float(arrays["temperature"]) - temperature) > SAME_TEMPERATURE:
        return None
    names = torsions(peptide, np.random.default_rng(0).normal(size=(1, len(peptide), 3)))
    ends = np.cumsum([names.phi.shape[1], names.psi.shape[1]])
    parts = []
    for k in RUNS:
        phi, psi, chi = np.split(arrays[f"angles_{k}"] * UNIT, ends, axis=1)
        found = Torsions(phi, psi, chi, names.phi_residue, names.psi_residue)
        parts.append(Conformations(found, arrays[f"energies_{k}"] * KJ_MOL))
    return parts[0], parts[1]
