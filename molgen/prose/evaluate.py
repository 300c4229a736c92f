"""A peptide ensemble against molecular dynamics: raw and reweighted, each figure beside its MD-against-MD floor.

The reference comes in two parts, two independent runs or the halves of one. A figure is the mean of its values against
the parts, the floor its value between them, so that both suffer alike from parts that are short.

- `e_w2`: Wasserstein-2 of the energies, in kT. Raw proposals: of the samples that have an energy.
- `t_w2`: Wasserstein-2 of all phi and psi on the torus, radians.
- `tica_w2`: Wasserstein-2 in the two slowest combinations (TICA, lag of 10 frames) of sine and cosine of phi, psi and
  chi, fitted on the reference; each combination has variance 1 there. Frames of one temperature of a replica exchange
  run are 1 ps apart, but exchanges break their continuity: the coordinates are then those along which that series,
  exchanges included, is slow.
- `js_bonds`: Jensen-Shannon divergence (nats, 36 x 36 bins) of psi_i and phi_i+1, mean over the peptide bonds.
- `js_residues`: the same of phi_i and psi_i, mean over the residues that have both; None for uncapped dipeptides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from molgen.data.peptide import Peptide
from molgen.prose.layout import Layout
from molgen.prose.metrics import BINS, MOST_POINTS, jensen_shannon, slow_coordinates, w2, w2_line, w2_torus
from molgen.prose.model import ProseFlow
from molgen.units import KB

POINTS = 2500  # of raw proposals and of each part of the reference in an optimal transport
LAG = 10  # frames
METRICS = ("e_w2", "t_w2", "tica_w2", "js_bonds", "js_residues")


@dataclass(frozen=True, eq=False)
class Torsions:
    """Torsion angles of n conformations, radians, and which residues they belong to (from 0, caps counted).

    Attributes:
        phi, psi: (n, P), (n, Q). phi_residue, psi_residue: (P,), (Q,). chi: (n, K) of the side chains, chi 1 to 5.
    """

    phi: np.ndarray
    psi: np.ndarray
    chi: np.ndarray
    phi_residue: np.ndarray
    psi_residue: np.ndarray

    @property
    def backbone(self) -> np.ndarray:
        """(n, P + Q) all phi, then all psi."""
        return np.concatenate([self.phi, self.psi], axis=1)

    @property
    def features(self) -> np.ndarray:
        """(n, f) cosines and sines of all torsions."""
        angles = np.concatenate([self.backbone, self.chi], axis=1)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)

    def pairs(self, across: int) -> list[np.ndarray]:
        """(n, 2) psi and phi of each residue that has both (`across` 0), or on the sides of each peptide bond (1)."""
        found = []
        for q, residue in enumerate(self.psi_residue):
            for p in np.flatnonzero(self.phi_residue == residue + across):
                found.append(np.stack([self.psi[:, q], self.phi[:, p]], axis=1))
        return found


@dataclass(frozen=True, eq=False)
class Conformations:
    """What is compared: torsions and energies (n,) in eV of n conformations, with normalised weights (n,) or None."""

    torsions: Torsions
    energies: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.energies)

    def take(self, index: np.ndarray) -> Conformations:
        """The conformations at `index`; weights are normalised anew."""
        t = self.torsions
        weights = None if self.weights is None else self.weights[index] / self.weights[index].sum()
        part = Torsions(t.phi[index], t.psi[index], t.chi[index], t.phi_residue, t.psi_residue)
        return Conformations(part, self.energies[index], weights)


def torsions(peptide: Peptide, positions: ArrayLike) -> Torsions:
    """Backbone and side-chain torsions (mdtraj's definitions) of positions (n, N, 3) in Angstrom."""
    import mdtraj
    from mdtraj.geometry import dihedral

    topology = peptide.mdtraj_topology()
    trajectory = mdtraj.Trajectory((np.asarray(positions) / 10).astype(np.float32), topology)

    def angles(quadruples: Sequence[np.ndarray]) -> np.ndarray:
        atoms = np.concatenate([np.asarray(q, dtype=int).reshape(-1, 4) for q in quadruples])
        return mdtraj.compute_dihedrals(trajectory, atoms, periodic=False).astype(float).reshape(len(trajectory), -1)

    phi, psi = (np.asarray(f(topology), dtype=int).reshape(-1, 4) for f in (dihedral.indices_phi, dihedral.indices_psi))
    chi = [getattr(dihedral, f"indices_chi{k}")(topology) for k in range(1, 6)]
    return Torsions(
        phi=angles([phi]),
        psi=angles([psi]),
        chi=angles(chi),
        phi_residue=peptide.residue_index[phi[:, 1]],
        psi_residue=peptide.residue_index[psi[:, 0]],
    )


def compare(
    sample: Conformations,
    reference: tuple[Conformations, Conformations],
    temperature: float,
    *,
    points: int = POINTS,
    lag: int = LAG,
) -> dict[str, Any]:
    """The figures of the module's description for `sample`, whose weights make its reweighted version.

    Args:
        sample: proposals, all of them, with weights; coordinates finite.
        reference: two parts, in time order, without weights.
        temperature: K.
        points: at most so many evenly spaced frames of each part, and as many proposals, enter an optimal transport;
            the reweighted ensemble enters with all samples that have a weight, up to 10^8 / `points` or 10,000.

    Returns:
        {metric: {"raw", "reweighted", "floor"}}, None where there is no such figure; "points" of each; "lag", "bins".
    """
    kt = KB * temperature
    views = {"raw": Conformations(sample.torsions, sample.energies)}
    thin = {"raw": views["raw"].take(_spaced(len(sample), points))}
    weighted = np.flatnonzero(sample.weights > 0) if sample.weights is not None else np.zeros(0, dtype=int)
    if len(weighted):
        most = min(MOST_POINTS, MOST_POINTS**2 // max(points, 1))
        views["reweighted"] = sample
        thin["reweighted"] = sample.take(weighted[_spaced(len(weighted), most)])
    finite = views | {"raw": views["raw"].take(np.flatnonzero(np.isfinite(sample.energies)))}
    parts = [part.take(_spaced(len(part), points)) for part in reference]
    lag = max(1, min(lag, min(map(len, reference)) // 4))
    slow = slow_coordinates([part.torsions.features for part in reference], lag)

    def energies(a: Conformations, b: Conformations) -> float:
        return w2_line(a.energies, b.energies, a.weights, b.weights) / kt

    def torus(a: Conformations, b: Conformations) -> float:
        return w2_torus(a.torsions.backbone, b.torsions.backbone, a.weights, b.weights)

    def tica(a: Conformations, b: Conformations) -> float:
        return w2(slow(a.torsions.features), slow(b.torsions.features), a.weights, b.weights)

    def divergence(a: Conformations, b: Conformations, across: int) -> float:
        pairs = zip(a.torsions.pairs(across), b.torsions.pairs(across), strict=True)
        return float(np.mean([jensen_shannon(x, y, a.weights, b.weights) for x, y in pairs]))

    def row(distance: Callable, own: dict[str, Conformations], against: Sequence[Conformations]) -> dict[str, Any]:
        found = {"raw": None, "reweighted": None, "floor": distance(*against)}
        return found | {k: float(np.mean([distance(v, part) for part in against])) for k, v in own.items() if len(v)}

    nothing = {"raw": None, "reweighted": None, "floor": None}
    residues, bonds = (bool(sample.torsions.pairs(across)) for across in (0, 1))
    return {
        "e_w2": row(energies, finite, reference),
        "t_w2": row(torus, thin, parts),
        "tica_w2": row(tica, thin, parts),
        "js_bonds": row(partial(divergence, across=1), views, reference) if bonds else nothing,
        "js_residues": row(partial(divergence, across=0), views, reference) if residues else nothing,
        "points": {name: len(view) for name, view in thin.items()} | {"reference": [len(part) for part in parts]},
        "lag": lag,
        "bins": BINS,
    }


def halves(conformations: Conformations) -> tuple[Conformations, Conformations]:
    """First and second half in time, the reference's two parts when there is one run."""
    middle = len(conformations) // 2
    return conformations.take(np.arange(middle)), conformations.take(np.arange(middle, len(conformations)))


def log_densities(
    flow: ProseFlow, layout: Layout, positions: ArrayLike, temperature: float, batch_size: int = 256
) -> np.ndarray:
    """(n,) log-densities of positions (n, N, 3) in Angstrom under the flow, ln(1/Angstrom^(3N-6)); -inf where zero."""
    x = np.asarray(positions, dtype=float)
    found = []
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            part = torch.from_numpy(x[start : start + batch_size])
            t = torch.full((len(part),), float(temperature), dtype=torch.float64)
            found.append(flow.log_prob(layout, part, t).double().numpy())
    return np.concatenate(found) if found else np.zeros(0)


def nll_per_dof(log_q: ArrayLike, atoms: int) -> float | None:
    """Mean of -log q over the 3N - 6 degrees of freedom, of the frames whose density is not zero; None without any."""
    log_q = np.asarray(log_q)
    some = np.isfinite(log_q)
    return float(-log_q[some].mean() / (3 * atoms - 6)) if some.any() else None


def _spaced(count: int, most: int) -> np.ndarray:
    """At most `most` evenly spaced indices below `count`."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int)
