"""Model systems that carry their exact answers, for testing samplers, searches and free-energy estimators.

The systems of one or two dimensions live on x (and y) of a single atom, positions (B, 1, 3); a harmonic spring of
`stiffness` holds the coordinates left over, so that every system has a partition function. Energies in eV, lengths in
Angstrom, stiffnesses in eV/Angstrom^2, temperatures in K. Partition functions are configurational, in Angstrom^(3N).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike

from molgen.errors import InputError
from molgen.potentials.base import Potential
from molgen.units import KB

ORDER = 400  # Gauss-Legendre points of one quadrature; the integrands here are resolved to rounding


class AnalyticPotential(Potential):
    """A potential with a known configurational partition function. Its atoms are hydrogens in name only."""

    @abstractmethod
    def log_partition(self, temperature: float) -> float:
        """ln Z, Z the integral of exp(-U / kT) over all coordinates."""


class Harmonic(AnalyticPotential):
    """U = 1/2 sum_i k_i (x_i - c_i)^2 on all 3N coordinates; also the restraint to a reference geometry.

    Args:
        centre: (N, 3) minimum, Angstrom.
        stiffness: k, eV/Angstrom^2: a number, (N, 1) for each atom, or (N, 3); positive where moments are asked for.
        numbers: (N,) atomic numbers; hydrogens by default.
    """

    def __init__(self, centre, stiffness: ArrayLike = 1.0, numbers=None):
        self.centre = np.asarray(centre, dtype=float)
        super().__init__(np.ones(len(self.centre)) if numbers is None else numbers)
        self.stiffness = np.broadcast_to(np.asarray(stiffness, dtype=float), self.centre.shape)

    def _evaluate(self, positions, forces):
        shift = positions - self.centre
        return 0.5 * (self.stiffness * shift**2).sum((1, 2)), -self.stiffness * shift

    def log_partition(self, temperature):
        return float(0.5 * np.log(2 * np.pi * self.variance(temperature)).sum())

    def mean_energy(self, temperature: float) -> float:
        """<U> = 3N/2 kT (equipartition)."""
        return 0.5 * self.centre.size * KB * temperature

    def variance(self, temperature: float) -> np.ndarray:
        """Variance (N, 3) of each coordinate, kT/k in Angstrom^2."""
        return KB * temperature / self.stiffness

    def sample(self, count: int, temperature: float, generator: np.random.Generator) -> np.ndarray:
        """Independent Boltzmann samples (count, N, 3)."""
        noise = generator.standard_normal((count, *self.centre.shape))
        return self.centre + noise * np.sqrt(self.variance(temperature))


class DoubleWell(AnalyticPotential):
    """U = h ((x/a)^2 - 1)^2 + t x/a + 1/2 k (y^2 + z^2).

    Args:
        barrier: h, eV; the barrier without tilt.
        separation: a, Angstrom; the wells lie near x = -a and x = a.
        tilt: t, eV; positive favours the left well. At most 8h / 3 sqrt(3), where one well disappears.
        stiffness: k of y and z.
    """

    def __init__(self, barrier: float = 0.1, separation: float = 1.0, tilt: float = 0.0, stiffness: float = 1.0):
        super().__init__([1])
        if abs(tilt) >= barrier * 8 / 27**0.5:
            raise InputError(
                f"tilt {tilt} leaves a single well",
                where="DoubleWell",
                expected=f"|tilt| below {barrier * 8 / 27**0.5:.4g} eV for barrier {barrier}",
            )
        self.barrier, self.separation, self.tilt, self.stiffness = barrier, separation, tilt, stiffness

    def _evaluate(self, positions, forces):
        u = positions[:, 0, 0] / self.separation
        side = positions[:, 0, 1:]
        force = np.empty_like(positions)
        force[:, 0, 0] = -(4 * self.barrier * u * (u**2 - 1) + self.tilt) / self.separation
        force[:, 0, 1:] = -self.stiffness * side
        return self._along(u) + 0.5 * self.stiffness * (side**2).sum(1), force

    def _along(self, u):
        return self.barrier * (u**2 - 1) ** 2 + self.tilt * u

    def stationary_points(self) -> np.ndarray:
        """x of the left well, the barrier top and the right well, (3,) Angstrom."""
        roots = np.roots([4 * self.barrier, 0, -4 * self.barrier, self.tilt])
        return np.sort(roots.real) * self.separation

    def log_partition(self, temperature):
        return float(np.logaddexp(*self._log_basins(temperature)))

    def basin_free_energy_difference(self, temperature: float) -> float:
        """F(right) - F(left) in eV, the basins divided at the barrier top."""
        left, right = self._log_basins(temperature)
        return KB * temperature * (left - right)

    def _log_basins(self, temperature):
        kt = KB * temperature
        top = self.stationary_points()[1] / self.separation
        # At |u| = reach the quartic alone has decayed by far more than double precision.
        reach = abs(top) + np.sqrt(1 + np.sqrt((50 * kt + 3 * abs(self.tilt)) / self.barrier))
        transverse = np.log(2 * np.pi * kt / self.stiffness) + np.log(self.separation)
        return [
            _log_integral(lambda u: -self._along(u) / kt, *ends) + transverse for ends in ((-reach, top), (top, reach))
        ]


class MuellerBrown(AnalyticPotential):
    """The surface of Mueller and Brown, Theor. Chim. Acta 1979, 53, 75, eq. 8, on (x, y), with 1/2 k z^2.

    Args:
        scale: eV per unit of the original. By default the higher barrier from the deepest minimum, 106 units, is
            0.21 eV, 8 kT at 300 K. The integrals below hold for kT from 4 to 60 units (by default: 93 to 1390 K).
        stiffness: k of z.
    """

    AMPLITUDE = np.array([-200.0, -100.0, -170.0, 15.0])
    XX, XY, YY = np.array([[-1.0, -1.0, -6.5, 0.7], [0.0, 0.0, 11.0, 0.6], [-10.0, -10.0, -6.5, 0.7]])
    X0, Y0 = np.array([[1.0, 0.0, -0.5, -1.0], [0.0, 0.5, 1.5, 1.0]])
    # (x, y) of the minima, deepest first, and of the saddles between minima 0-2 and 2-1; energies of the original units
    MINIMA = np.array([[-0.5582236346, 1.4417258418], [0.6234994049, 0.0280377585], [-0.0500108230, 0.4666941049]])
    SADDLES = np.array([[-0.8220015587, 0.6243128028], [0.2124865820, 0.2929883251]])
    # Basin 0 is y - x above its value at its saddle.
    DIVIDE = float(SADDLES[0, 1] - SADDLES[0, 0])

    def __init__(self, scale: float = 0.002, stiffness: float = 1.0):
        super().__init__([1])
        self.scale, self.stiffness = scale, stiffness

    def _evaluate(self, positions, forces):
        x, y, z = positions[:, 0].T
        dx, dy, terms = self._terms(x, y)
        force = np.empty_like(positions)
        force[:, 0, 0] = -self.scale * (terms * (2 * self.XX * dx + self.XY * dy)).sum(-1)
        force[:, 0, 1] = -self.scale * (terms * (self.XY * dx + 2 * self.YY * dy)).sum(-1)
        force[:, 0, 2] = -self.stiffness * z
        return self.scale * terms.sum(-1) + 0.5 * self.stiffness * z**2, force

    def _terms(self, x, y):
        dx, dy = np.asarray(x)[..., None] - self.X0, np.asarray(y)[..., None] - self.Y0
        return dx, dy, self.AMPLITUDE * np.exp(self.XX * dx**2 + self.XY * dx * dy + self.YY * dy**2)

    def surface(self, x, y) -> np.ndarray:
        """U(x, y, z = 0) in eV for arrays of any one shape, Angstrom."""
        return self.scale * self._terms(x, y)[2].sum(-1)

    def free_energy(self, x, temperature: float) -> np.ndarray:
        """Free energy (M,) in eV at x (M,), the other coordinates integrated out: -kT ln of the marginal of Z."""
        kt = KB * temperature
        log_marginal = [_log_integral(lambda y, at=at: -self.surface(at, y) / kt, -3.0, 5.0) for at in np.atleast_1d(x)]
        return -kt * (np.array(log_marginal) + self._log_transverse(temperature))

    def log_partition(self, temperature):
        return float(np.logaddexp(*self._log_basins(temperature))) + self._log_transverse(temperature)

    def basin_free_energy_difference(self, temperature: float) -> float:
        """F(minima 1 and 2) - F(minimum 0) in eV, divided by the line y - x = DIVIDE through the first saddle."""
        upper, lower = self._log_basins(temperature)
        return KB * temperature * (upper - lower)

    def _log_transverse(self, temperature):
        return 0.5 * np.log(2 * np.pi * KB * temperature / self.stiffness)

    def _log_basins(self, temperature):
        """ln of the integral over (x, y) on either side of DIVIDE, in u = y - x and v = y + x (dx dy = du dv / 2)."""
        kt = KB * temperature
        v, log_weight = _nodes(-4.0, 4.0)

        def marginal(u):
            u = u[:, None]
            return _log_sum(-self.surface((v - u) / 2, (v + u) / 2) / kt + log_weight) - np.log(2)

        return _log_integral(marginal, self.DIVIDE, 7.5), _log_integral(marginal, -3.5, self.DIVIDE)


class GaussianMixture(AnalyticPotential):
    """U = -kT ln sum_k w_k N(x; m_k, C_k) - kT ln(total), over all 3N coordinates at once.

    At its own temperature the Boltzmann distribution is the mixture itself, so weights, mean and covariance are known.

    Args:
        means: (K, N, 3) Angstrom.
        covariances: (K, 3N, 3N), (K,) or a number (isotropic), Angstrom^2.
        weights: (K,) positive; normalised here. Equal by default.
        temperature: K.
        log_total: ln Z of the unnormalised density.
    """

    def __init__(
        self, means, covariances: ArrayLike = 0.1, weights=None, temperature: float = 300.0, log_total: float = 0.0
    ):
        self.means = np.asarray(means, dtype=float)
        components, atoms, _ = self.means.shape
        super().__init__(np.ones(atoms))
        covariances = np.asarray(covariances, dtype=float)
        if covariances.ndim < 3:
            covariances = np.broadcast_to(covariances, components)[:, None, None] * np.eye(3 * atoms)
        weights = np.ones(components) if weights is None else np.asarray(weights, dtype=float)
        self.covariances, self.weights = covariances, weights / weights.sum()
        self.temperature, self.log_total = temperature, log_total
        self._precisions = np.linalg.inv(covariances)
        log_norm = -0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]
        self._log_heights = np.log(self.weights) + log_norm + log_total

    def _evaluate(self, positions, forces):
        shift = (positions[:, None] - self.means).reshape(len(positions), len(self.means), -1)
        pull = np.einsum("kij,bkj->bki", self._precisions, shift)
        logs = self._log_heights - 0.5 * (shift * pull).sum(-1)
        log_density = _log_sum(logs)
        share = np.exp(logs - log_density[:, None])
        kt = KB * self.temperature
        return -kt * log_density, -kt * np.einsum("bk,bki->bi", share, pull).reshape(positions.shape)

    def log_partition(self, temperature):
        if not np.isclose(temperature, self.temperature, rtol=1e-12):
            raise InputError(
                f"ln Z of this mixture is known at {self.temperature} K only, asked at {temperature} K",
                where="GaussianMixture",
                remedy="build the mixture with the temperature you sample at",
            )
        return self.log_total

    def mean(self) -> np.ndarray:
        """<x>, (N, 3) Angstrom."""
        return np.einsum("k,kni->ni", self.weights, self.means)

    def covariance(self) -> np.ndarray:
        """Covariance (3N, 3N) of the flattened coordinates, Angstrom^2."""
        shift = (self.means - self.mean()).reshape(len(self.means), -1)
        return np.einsum("k,kij->ij", self.weights, self.covariances + np.einsum("ki,kj->kij", shift, shift))

    def sample(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Independent samples (count, N, 3)."""
        which = generator.choice(len(self.weights), size=count, p=self.weights)
        noise = generator.standard_normal((count, self.means[0].size, 1))
        spread = (np.linalg.cholesky(self.covariances)[which] @ noise)[..., 0]
        return self.means[which] + spread.reshape(count, *self.means.shape[1:])


def _log_sum(logs) -> np.ndarray:
    """ln sum exp over the last axis."""
    return np.logaddexp.reduce(logs, axis=-1)


def _nodes(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes and log weights on [low, high]."""
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    half = (high - low) / 2
    return low + half * (nodes + 1), np.log(half * weights)


def _log_integral(log_density, low: float, high: float) -> float:
    nodes, log_weights = _nodes(low, high)
    return float(_log_sum(log_density(nodes) + log_weights))
