"""A batch of conformations, or the placed part of one, in every form the flow reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from molgen.geometry.internal import log_volume, to_internal, wrapped_angle
from molgen.prose.layout import Layout
from molgen.prose.physics import local_quadratic, scan
from molgen.prose.rows import Rows
from molgen.prose.zmatrix import canonical
from molgen.units import KB

REFERENCE = 400.0  # K
_PRECISION = 0.08  # the least curvature along a coordinate, in units where its stiffest term has 1
_SHIFT = 4.0  # widths: the most that the force field moves a mean


@dataclass(frozen=True, eq=False)
class Local:
    """The force field's local quadratic for K atoms, coordinates eliminated one after the other.

    E = g.d + d.H.d/2 in steps d (r, theta, phi) from the ideal position, in units of `Layout.scale`; integrating phi
    out leaves theta | r, then r.

    Attributes:
        slopes, precisions: (B, K, 3) of r, theta | r, phi | r, theta. coupling: (B, K, 3) of theta with r, phi with r
            and phi with theta. Units of eV.
    """

    slopes: Tensor
    precisions: Tensor
    coupling: Tensor

    @classmethod
    def of(cls, gradient: Tensor, hessian: Tensor) -> Local:
        """From gradient (B, K, 3) and Hessian (B, K, 6: rr, tt, pp, rt, rp, tp)."""
        g_r, g_t, g_p = gradient.unbind(-1)
        rr, tt, pp, rt, rp, tp = hessian.unbind(-1)
        pp = pp.clamp(min=_PRECISION)
        g_r, g_t = g_r - rp * g_p / pp, g_t - tp * g_p / pp
        rr, tt, rt = rr - rp * rp / pp, (tt - tp * tp / pp).clamp(min=_PRECISION), rt - rp * tp / pp
        g_r, rr = g_r - rt * g_t / tt, (rr - rt * rt / tt).clamp(min=_PRECISION)
        return cls(torch.stack([g_r, g_t, g_p], -1), torch.stack([rr, tt, pp], -1), torch.stack([rt, rp, tp], -1))

    @classmethod
    def free(cls, like: Tensor, k: int) -> Local:
        """K atoms of which only their own bond and angle are known, for states like `like` (B, ...)."""
        zero = like.new_zeros(len(like), k, 3)
        return cls(zero, zero + 1, zero)

    def conditional(self, kind: int, delta: Tensor, kt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the inverse width (B, K) of step `kind`, given those before it in delta (B, K, 3)."""
        slope, precision = self.slopes[..., kind], self.precisions[..., kind]
        if kind == 1:
            slope = slope + self.coupling[..., 0] * delta[..., 0]
        elif kind == 2:
            slope = slope + self.coupling[..., 1] * delta[..., 0] + self.coupling[..., 2] * delta[..., 1]
        width = (kt[:, None] / precision).sqrt()
        return -width * _SHIFT * torch.tanh(slope / precision / width / _SHIFT), -width.log()

    def hints(self, kt: Tensor) -> Tensor:
        """(B, K, 6) the same as inputs of the network, of order one."""
        pull = self.slopes / (self.precisions * kt[:, None, None]).sqrt()
        return torch.cat([torch.tanh(pull / 4), self.precisions.log() / 2], -1)


@dataclass(frozen=True, eq=False)
class State:
    """B conformations of one layout, by rank; ranks that are not yet placed hold zeros.

    Attributes:
        x: (B, N, 3) Angstrom. q: (B, N, 3) internal coordinates. delta: (B, N, 3) steps from the ideal r, theta and
            narrow phi in units of `Layout.scale` (0 for a broad phi). own: (B, N, OWN) what other atoms see of it.
        kt: (B,) eV. condition: (B, 2) of the temperature.
    """

    x: Tensor
    q: Tensor
    delta: Tensor
    own: Tensor
    kt: Tensor
    condition: Tensor

    def frames(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Axes (B, K, 3, 3: rows) of the reference frames of `rows`, zero where undefined; origins (B, K, 3)."""
        a, b, c = (self.x[:, index] for index in (rows.a, rows.b, rows.c))
        axis = _unit(c - b)
        normal = _unit(torch.linalg.cross(b - a, axis))
        frame = torch.stack([axis, torch.linalg.cross(normal, axis), normal], 2)
        return frame * (rows.ranks > 2).to(self.x.dtype)[:, None, None], c


@dataclass(frozen=True, eq=False)
class CompleteState(State):
    """A state of which every rank is placed, with all that its density is made of.

    Attributes:
        local: of all atoms. scan: (B, R, CHANNELS, KNOTS) eV. log_volume: (B,).
    """

    local: Local
    scan: Tensor
    log_volume: Tensor

    @classmethod
    def of(cls, layout: Layout, x: Tensor, temperature: Tensor, dtype: torch.dtype) -> CompleteState:
        """From positions (B, N, 3) in the peptide's atom order and temperatures (B,); computed in double precision."""
        x = canonical(layout.z, x.double()[:, layout.order])
        q = to_internal(layout.z, x)
        gradient, hessian = local_quadratic(layout, x.to(dtype), layout.narrow)
        scans = torch.stack([scan(layout, rotor, x.to(dtype)) for rotor in layout.rotors], 1)
        return cls.from_parts(
            layout, x.to(dtype), q.to(dtype), gradient, hessian, scans, log_volume(layout.z, q, x), temperature
        )

    @classmethod
    def from_parts(
        cls,
        layout: Layout,
        x: Tensor,
        q: Tensor,
        gradient: Tensor,
        hessian: Tensor,
        scans: Tensor,
        volume: Tensor,
        temperature: Tensor,
    ) -> CompleteState:
        """From what :meth:`of` computes and a training set keeps: gradient (B, K, 3), hessian (B, K, 6)."""
        delta, own = coordinates(layout, q)
        b, n = q.shape[:2]
        full = gradient.new_zeros(b, n, 3).index_copy(1, layout.narrow, gradient)
        unit = torch.cat([gradient.new_ones(b, n, 3), gradient.new_zeros(b, n, 3)], -1)
        hessian = unit.index_copy(1, layout.narrow, hessian)
        kt, condition = thermal(temperature, x.dtype)
        return cls(x, q, delta, own, kt, condition, Local.of(full, hessian), scans.to(x.dtype), volume)


def coordinates(layout: Layout, q: Tensor) -> tuple[Tensor, Tensor]:
    """Steps (B, K, 3) from the ideal position and own features (B, N, 7) of internal coordinates (B, N, 3)."""
    dtype = q.dtype
    delta = (q - layout.ideal.to(dtype)) / layout.scale.to(dtype) * layout.has_line.to(dtype)
    phi = q[..., 2]
    broad = layout.broad.to(dtype)
    circle = torch.stack([phi.cos(), phi.sin(), (2 * phi).cos(), (2 * phi).sin()], -1) * broad[:, None]
    return delta, torch.cat([delta.clamp(-2, 2) * 4, circle], -1)


def thermal(temperature: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """kT (B,) in eV and the temperature (B, 2) as the network sees it."""
    t = temperature.to(dtype)
    log_t = torch.log(t / REFERENCE) * 2
    return KB * t, torch.stack([log_t, log_t.square()], -1)


def broad_positions(layout: Layout, state: State) -> Tensor:
    """(B, R) broad dihedrals times their fold, wrapped to [-pi, pi)."""
    return wrapped_angle(state.q[:, layout.rotor_ranks, 2] * layout.folds.to(state.q.dtype))


def _unit(vector: Tensor) -> Tensor:
    return vector / (vector.square().sum(-1, keepdim=True) + 1e-12).sqrt()
