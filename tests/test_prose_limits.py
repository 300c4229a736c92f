"""Prose's windows: rings that can close and do, exact densities where the windows bite, and what they leave alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flow_cases import KELVIN, flow_of, jacobian, layout_of, real
from torch import Tensor

from molgen.geometry.internal import place, to_internal
from molgen.prose.generate import sample, uniform
from molgen.prose.layout import Layout
from molgen.prose.limits import BEND, windows, within
from molgen.prose.rows import Rows
from molgen.prose.zmatrix import canonical

RINGS = {"H": ["CE1"], "F": ["CZ"], "Y": ["CZ"], "W": ["CE2", "CH2"]}  # what closes them


def tight(layout: Layout, share: float = 0.25) -> Layout:
    """The same molecule with static windows narrowed about their middle, so that they cut into the conditionals.

    Not the bonds that close a ring, which could then not be closed.
    """
    limits = layout.limits
    middle, half = (limits.low + limits.high) / 2, (limits.high - limits.low) / 2 * share
    finite = limits.low.isfinite() & ~limits.closes[:, None]
    low, high = (torch.where(finite, middle + side * half, edge) for side, edge in ((-1, limits.low), (1, limits.high)))
    return replace(layout, limits=replace(limits, low=low, high=high))


def span(layout: Layout, name: str) -> tuple[int, int, int]:
    """Ranks of the atom `name` that closes a ring, of the last atom before it, and of the ring's other end."""
    names = [layout.peptide.names[i] for i in layout.z.order]
    (closing,) = [i for i in np.flatnonzero(layout.z.closes) if names[i] == name]
    end, last = sorted(int(k) for k in layout.z.references[closing, 1:])
    return int(closing), last, end


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, names in RINGS.items() for name in names])
def test_the_window_of_a_torsion_is_where_the_ring_can_be_closed(kind: str, name: str) -> None:
    """Turn the last atom but one all around: within its window, and nowhere else, its gap is within reach."""
    layout = layout_of(f"{kind}/ace-nme")
    z, limits = layout.z, layout.limits
    closing, last, end = span(layout, name)
    assert int(limits.mate[last]) == end
    x = canonical(z, real(f"{kind}/ace-nme")[:, layout.order])
    q = to_internal(z, x)
    at = torch.tensor([last])
    q[:, last, 1] += 0.1  # a little open: then the window of phi is an inner one
    low, high = (edge[:, 0] for edge in windows(Rows.at(layout, at), x, q[:, at], 2))
    wide = limits.high[last, 2]
    assert (low > -wide).all() and (high < wide).all(), "cut by the ring"
    a, b, c = (x[:, k] for k in z.references[last])
    for phi in torch.linspace(-float(wide), float(wide), 400, dtype=torch.float64):
        turned = place(a, b, c, q[:, last, 0], q[:, last, 1], (phi + float(z.centre[last])).expand(len(x)))
        gap = (turned - x[:, end]).norm(dim=-1)
        near = (phi - low).abs().minimum((phi - high).abs()) < 1e-3
        assert (((phi > low) & (phi < high)) == (gap < limits.gap[last, 1]))[~near].all()
    assert limits.gap[last, 1] < layout.r0[closing] + layout.theta0[closing]


@pytest.mark.parametrize("kind, name", [("H", "CE1"), ("W", "CH2")])
def test_the_window_of_an_angle_leaves_a_torsion(kind: str, name: str) -> None:
    """At either end of the window of theta the ring lies flat and its gap is the most or the least there may be."""
    layout = layout_of(f"{kind}/ace-nme")
    z, limits = layout.z, layout.limits
    _, last, end = span(layout, name)
    x = canonical(z, real(f"{kind}/ace-nme")[:, layout.order])
    q, at = to_internal(z, x), torch.tensor([last])
    infinite = torch.full_like(limits.low, math.inf)
    free = Rows.at(replace(layout, limits=replace(limits, low=-infinite, high=infinite)), at)
    a, b, c = (x[:, k] for k in z.references[last])
    for edge, bound in zip(windows(free, x, q[:, at], 1), limits.gap[last], strict=True):
        turned = q[:, at].clone()
        turned[..., 1] = edge
        phis = torch.linspace(-math.pi, math.pi, 721, dtype=torch.float64)
        gaps = torch.stack(
            [(place(a, b, c, q[:, last, 0], edge[:, 0], p.expand(len(x))) - x[:, end]).norm(dim=-1) for p in phis]
        )
        assert gaps.amin(0) == pytest.approx(float(bound), abs=1e-4)
        if bound == limits.gap[last, 1]:
            low, high = windows(free, x, turned, 2)
            assert (high - low).abs().max() < 1e-3


@pytest.mark.parametrize("molecule", ["H/ace-nme", "W/ace-nme", "P/ace-nme"])
def test_the_lengths_that_close_a_ring_make_a_triangle(molecule: str) -> None:
    """Whatever the gap: r leaves room for r2, and every r2 of its window meets r."""
    layout = layout_of(molecule)
    z = layout.z
    for closing in np.flatnonzero(z.closes).tolist():
        at = torch.tensor([closing])
        _, b, c = (int(k) for k in z.references[closing])
        for gap in (0.8, 1.5, 2.2, 2.9):
            x = torch.zeros(1, layout.atoms, 3, dtype=torch.float64)
            x[:, b, 0] = gap
            q = torch.zeros(1, 1, 3, dtype=torch.float64)
            for first in windows(Rows.at(layout, at), x, q, 0):
                q[..., 0] = first
                low, high = windows(Rows.at(layout, at), x, q, 1)
                assert (low < high + 1e-9).all()
                for second in (float(low), float(high)):
                    r = float(first)
                    assert abs(r - second) <= gap + 1e-9 and gap <= r + second + 1e-9
                    assert second <= float(layout.limits.high[closing, 1]) + 1e-9
            assert bool((x[:, b] - x[:, c]).norm() > 0)


@pytest.mark.parametrize("molecule", ["H/ace-nme", "P/ace-nme"])
def test_the_density_is_the_jacobian_where_windows_bite(molecule: str) -> None:
    layout = tight(layout_of(molecule))
    own, volume = jacobian(layout)
    assert math.isfinite(own) and own == pytest.approx(volume, abs=1e-5)


@pytest.mark.parametrize("molecule", ["H/ace-nme", "W/ace-nme", "TF"])
def test_samples_carry_their_density_where_windows_bite(molecule: str) -> None:
    """The two ways of computing it, and the windows are no small matter: the density without them is another."""
    plain = layout_of(molecule)
    layout = tight(plain)
    noise = torch.stack([uniform(2, i, layout.noise) for i in range(12)])
    kelvin = torch.full((12,), KELVIN).double()
    out = sample(flow_of(), layout, noise, kelvin)
    finite = out.log_q.isfinite()
    assert finite.sum() >= 8
    with torch.no_grad():
        found = flow_of().log_prob(layout, out.x[finite], kelvin[finite])
        unlimited = flow_of().log_prob(plain, out.x[finite], kelvin[finite])
    assert (found - out.log_q[finite]).abs().max() < 1e-6
    assert (found > unlimited + 0.5).all()
    blocks = sample(flow_of(), layout, noise[finite][:3], kelvin[:3], block=5)
    assert (blocks.log_q - out.log_q[finite][:3]).abs().max() < 1e-6


@pytest.mark.parametrize("molecule", ["H/ace-nme", "W/ace-nme", "F/ace-nme"])
def test_rings_close_whatever_the_random_numbers(molecule: str) -> None:
    """Not even where they ask for the far ends of bonds, angles and torsions is a bond torn."""
    layout = layout_of(molecule)
    noise = torch.stack([uniform(5, i, layout.noise) for i in range(40)]).view(40, -1, 4)
    for k, value in enumerate((1e-9, 1 - 1e-9)):
        for kind in range(3):
            noise[6 * k + 2 * kind : 6 * k + 2 * kind + 2, :, kind] = value
    out = sample(flow_of(), layout, noise.flatten(1), torch.full((40,), KELVIN).double())
    assert out.log_q.isfinite()[12:].all()
    x = out.x[out.log_q.isfinite()].numpy()
    length = np.linalg.norm(np.diff(x[:, layout.peptide.bonds], axis=2)[:, :, 0], axis=-1)
    ratio = length / layout.peptide.parameters.bond_length
    assert 0.75 - 1e-5 < ratio.min() and ratio.max() < 1.25 + 1e-5


def test_a_conditional_that_misses_its_window_is_moved_there() -> None:
    """Histidine's heads ask for bonds of several Angstrom: they get the longest that there may be, with its density."""
    layout = layout_of("H/ace-nme")
    flow = flow_of()
    before = flow.head_out.detach().clone()
    noise = torch.stack([uniform(1, i, layout.noise) for i in range(4)])
    kelvin = torch.full((4,), KELVIN).double()
    try:
        with torch.no_grad():
            flow.head_out[0, :, 0] += 200.0
        out = sample(flow, layout, noise, kelvin)
        assert out.log_q.isfinite().all()
        with torch.no_grad():
            assert (flow.log_prob(layout, out.x, kelvin) - out.log_q).abs().max() < 1e-6
    finally:
        with torch.no_grad():
            flow.head_out.copy_(before)


def test_limits_leave_room_for_what_is_real() -> None:
    """Springs may hold at least 0.8 eV at the edge of an angle; no angle is excluded that costs 20 kT at 450 K."""
    for molecule in ("TP", "W/ace-nme", "H/ace-nme"):
        layout = layout_of(molecule)
        angle = ~layout.limits.closes & (torch.arange(layout.atoms) > 1)
        units = (layout.limits.high[:, 1] - layout.theta0)[angle] / layout.scale[angle, 1]
        assert units.max() == pytest.approx(BEND) and 0.5 * BEND**2 > 0.8
        x: Tensor = canonical(layout.z, real(molecule)[:, layout.order])
        q = to_internal(layout.z, x)
        assert within(Rows.of(layout, range(layout.atoms)), x, q).all()
        q[0, 4, 0] *= 1.3
        assert within(Rows.of(layout, range(layout.atoms)), x, q).tolist() == [False, True]
