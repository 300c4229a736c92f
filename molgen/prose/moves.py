"""Moves of a simulation to conformations that a flow proposes: iterated sampling importance resampling.

Of the present conformation and K proposals the next one is picked by weight, exp(-E/kT) / q. That leaves the Boltzmann
distribution alone whatever the flow (i-SIR: Andrieu, Lee & Vihola, Bernoulli 24 (2018) 842; as moves between steps of
dynamics: Samsonov et al., NeurIPS 2022). Where the flow misses a mode the present conformation outweighs all proposals
and stays, until the dynamics leave it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from molgen.data.peptide import Peptide
from molgen.data.stereochemistry import wrong_chirality
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.weights import Proposal
from molgen.rng import generator, sample_seed
from molgen.units import KB

TRIES = 8  # proposals a move and temperature: cost about as much as the picosecond of dynamics between two moves
BLOCK = 64  # moves whose proposals are drawn at once, TRIES * BLOCK a temperature


class FlowMoves:
    """Moves at every temperature of a simulation.

    Args:
        temperatures: (T,) K, within those the flow was trained on. seed: move m depends on (seed, m) only.
        platform: OpenMM platform of the energies. tries: proposals a move and temperature.

    Attributes:
        hash: of the flow's weights.
    """

    def __init__(
        self,
        proposal: Proposal,
        peptide: Peptide,
        temperatures: Sequence[float],
        seed: int = 0,
        platform: str = "auto",
        tries: int = TRIES,
    ):
        self.hash, self.temperatures, self.seed, self.tries = proposal.hash, tuple(temperatures), seed, tries
        self._flow, self._layout = proposal.model, Layout.of(peptide)
        self._potential = peptide.potential(platform)
        self._block: tuple[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = (-1, [])

    def named(self, positions: np.ndarray) -> np.ndarray:
        """Positions (n, N, 3) with equivalent hydrogens and methyl groups named as the flow names them."""
        return self._layout.named(positions)

    def __call__(
        self, move: int, positions: np.ndarray, energies: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions (T, N, 3) in Angstrom and energies (T,) in eV after move number `move`, and (T,) which changed."""
        positions, energies = np.array(positions, dtype=float), np.array(energies, dtype=float)
        moved = np.zeros(len(positions), dtype=bool)
        random = generator(self.seed, 1, move)
        kelvins = np.array(self.temperatures)
        with torch.no_grad():
            log_q = self._flow.log_prob(self._layout, torch.from_numpy(positions), torch.from_numpy(kelvins)).numpy()
        present = -energies / (KB * kelvins) - log_q
        for k in range(len(kelvins)):
            x, energy, log_w = self._proposals(move, k)
            chosen = pick(np.append(log_w, present[k]), random)
            if chosen < len(x):
                positions[k], energies[k], moved[k] = x[chosen], energy[chosen], True
        return positions, energies, moved

    def _proposals(self, move: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, energies (eV) and log-weights of the proposals of a move at temperature k."""
        block, place = divmod(move, BLOCK)
        if self._block[0] != block:
            self._block = block, [self._drawn(block, index) for index in range(len(self.temperatures))]
        rows = slice(place * self.tries, (place + 1) * self.tries)
        x, energy, log_w = (array[rows] for array in self._block[1][k])
        return x, energy, log_w

    def _drawn(self, block: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The proposals of a block of moves at temperature k; of weight zero what the dynamics cannot reach."""
        seed, temperature = sample_seed(self.seed, 0, block, k), self.temperatures[k]
        x, log_q = propose(self._flow, self._layout, self.tries * BLOCK, temperature, seed)
        energy, log_w = np.full(len(x), np.nan), np.full(len(x), -np.inf)
        some = np.flatnonzero(np.isfinite(log_q) & ~wrong_chirality(self._layout.peptide, x))
        energy[some] = self._potential.energy(x[some])
        some = np.flatnonzero(np.isfinite(energy))
        log_w[some] = -energy[some] / (KB * temperature) - log_q[some]
        return x, energy, log_w


def pick(log_w: np.ndarray, random: np.random.Generator) -> int:
    """An index of `log_w` (n,) by weight; the last, which is the present conformation, where its weight is infinite."""
    if log_w[-1] == np.inf:
        return len(log_w) - 1
    weights = np.exp(log_w - log_w.max())
    return int(random.choice(len(log_w), p=weights / weights.sum()))
