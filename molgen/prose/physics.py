"""What the force field says of the next atom, given the placed ones: the flow starts from it and learns the rest.

Narrow coordinates: gradient and Hessian, at the ideal position, of every energy term that the atom completes (bonds,
angles, torsions, Lennard-Jones, screened Coulomb). Broad dihedrals: the same energies around the circle, for the atom
and the substituents that turn with it. Nothing here is learned or depends on temperature, so training computes it
once a frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from molgen.geometry.internal import angle, closing_angle, dihedral, place
from molgen.prose.layout import Layout
from molgen.prose.rotors import Rotor, Terms
from molgen.units import COULOMB

KNOTS = 64
CHANNELS = 7
STEP = 0.16  # sqrt(eV): the thermal width at 300 K of a coordinate in units of `Layout.scale`
CLIP = 5.0  # eV
_PIECE = 1 << 17  # numbers in a tensor that stays in the cache
# Steps (r, theta, phi): centre, both sides of each, then the three mixed ones.
_STENCIL = (
    (0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1), (1, 1, 0), (1, 0, 1), (0, 1, 1),
)  # fmt: skip
SCREENING = 1 - 1 / 78.5


def nonbonded(square: Tensor, sigma: Tensor, epsilon: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
    """Softened Lennard-Jones and screened Coulomb energies (eV) of squared distances (Angstrom^2).

    Screening as in generalised Born with one Born radius of 2 Angstrom for all atoms.
    """
    s6 = sigma**6
    u = s6 / (square**3 + 0.02 * s6)
    coulomb = torch.rsqrt(square + 0.1) - SCREENING * torch.rsqrt(square + 4.0)
    return 4 * epsilon * (u * u - u), charge * coulomb


def local_quadratic(layout: Layout, x: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (B, K, 3) and Hessian (B, K, 6: rr, tt, pp, rt, rp, tp) of narrow atoms in units of `layout.scale`, eV.

    Args:
        x: (B, N, 3) positions by rank; only ranks below an atom's own matter. ranks: (K,) of `layout.narrow`.
    """
    plan = _plan(layout, ranks, x.dtype)
    a, b, c = (x[:, index] for index in plan.references)
    delta = plan.stencil * STEP * plan.scale[:, None]  # (K, S, 3)
    r = plan.r0[:, None] + delta[..., 0]
    second = plan.theta0[:, None] + delta[..., 1]
    distance = (b - c).norm(dim=-1)[..., None]
    theta = torch.where(plan.closes, _bent(closing_angle(r, second, distance)), second)
    phi = plan.centre[:, None] + delta[..., 2]
    points = place(a[:, :, None], b[:, :, None], c[:, :, None], r.expand_as(theta), theta, phi.expand_as(theta))
    energy = 0.5 * (plan.stencil * STEP).square()[..., :2].mul(plan.springs[:, None]).sum(-1)
    energy = energy + _bonded(plan, x, points)

    before = int(ranks.max())
    centred = x[:, None, :before] - c[:, :, None]  # (B, K, J, 3)
    relative = points - c[:, :, None]
    square = relative.square().sum(-1)[..., None] + centred.square().sum(-1)[:, :, None]
    square = (square - 2 * relative @ centred.transpose(-1, -2)).clamp(min=0.01)
    lj, coulomb = nonbonded(square, plan.sigma, plan.epsilon, plan.charge)
    energy = energy + (lj + coulomb).sum(-1)

    e = energy.unbind(-1)
    gradient = torch.stack([e[1] - e[2], e[3] - e[4], e[5] - e[6]], -1) / (2 * STEP)
    own = [e[2 * k + 1] + e[2 * k + 2] - 2 * e[0] for k in range(3)]
    mixed = [e[7] - e[1] - e[3] + e[0], e[8] - e[1] - e[5] + e[0], e[9] - e[3] - e[5] + e[0]]
    return gradient.clamp(-CLIP, CLIP), (torch.stack(own + mixed, -1) / STEP**2).clamp(-20.0, 20.0)


def scan(layout: Layout, rotor: Rotor, x: Tensor) -> Tensor:
    """What a broad dihedral feels around the circle (B, CHANNELS, KNOTS), in eV, at most 5.

    Torsion, Lennard-Jones and Coulomb energies of the atoms that turn. Then, since what is still to come screens
    electrostatics: their Coulomb energy at longer range; the same two for the branch beyond X, as one charge; and how
    crowded it is there. Knot g stands for the dihedral (2 pi g / KNOTS - pi) / fold of the rotor's first atom.

    Args:
        x: (B, N, 3) positions by rank; only ranks below the rotor's matter.
    """
    dtype, i, y = x.dtype, rotor.rank, rotor.atoms
    a, b, c = (x[:, int(k)] for k in layout.z.references[i])
    axis = c - b
    axis = axis / axis.norm(dim=-1, keepdim=True)
    normal = torch.linalg.cross(b - a, axis)
    normal = normal / normal.norm(dim=-1, keepdim=True)
    third = torch.linalg.cross(normal, axis)
    frame = torch.stack([axis, third, normal], 1)  # (B, 3, 3)

    u = (torch.arange(KNOTS, dtype=dtype, device=x.device) * (2 * math.pi / KNOTS) - math.pi) / rotor.fold
    theta = layout.theta0[y].to(dtype).expand(len(x), -1)
    r = layout.r0[y].to(dtype)
    if layout.z.closes[i]:
        theta = _bent(closing_angle(r, theta, (b - c).norm(dim=-1, keepdim=True)))
    radius, height = r * theta.sin(), -r * theta.cos()  # (B, Y)
    placed = (x[:, :i] - c[:, None]) @ frame.transpose(1, 2)  # (B, J, 3): along the axis, then across
    azimuth = u + rotor.azimuth.to(dtype)[:, None]  # (Y, G)
    turn = torch.stack([azimuth.cos(), azimuth.sin()], 1)  # (Y, 2, G)
    tables = [t[y, :i].to(dtype)[..., None] for t in (layout.sigma, layout.epsilon, layout.charges)]
    tables[1] = tables[1] * layout.lj[y, :i].to(dtype)[..., None]
    tables[2] = tables[2] * layout.coulomb[y, :i].to(dtype)[..., None]
    # in pieces that fit the cache: written out and read back, the distances (B, Y, J, G) took most of the time
    piece = max(1, _PIECE // (len(y) * i * KNOTS))
    parts = zip(placed.split(piece), height.split(piece), radius.split(piece), strict=True)
    found = zip(*(_around(*part, turn, *tables) for part in parts), strict=True)
    lj, coulomb, beyond = (torch.cat(term) for term in found)

    torsion = x.new_zeros(len(x), KNOTS)
    if len(rotor.ends):
        far = x[:, rotor.ends] - b[:, None]
        far = torch.atan2((far * normal[:, None]).sum(-1), (far * third[:, None]).sum(-1))  # (B, K)
        n, phase, k = rotor.torsions.to(dtype).unbind(-1)
        shift = n * (rotor.offsets.to(dtype) - far) - phase
        torsion = (k[:, None] * (1 + torch.cos(n[:, None] * u + shift[..., None]))).sum(1)
    if rotor.closure is not None:  # the angle that the ring's last atom will have at this distance from A
        r1, r2, rest, k = rotor.closure
        mate = x[:, int(layout.z.references[i, 0])] - c
        mate = (mate[:, None] @ frame.transpose(1, 2))[:, 0]  # (B, 3)
        across = mate[:, 2:] * turn[0, 1] + mate[:, 1:2] * turn[0, 0]
        gap = (
            (mate[:, :1] - height[:, :1]).square() + mate[:, 1:].square().sum(-1, keepdim=True) + radius[:, :1].square()
        )
        gap = gap - 2 * radius[:, :1] * across
        bend = torch.arccos(((r1 * r1 + r2 * r2 - gap) / (2 * r1 * r2)).clamp(-0.9999, 0.9999))
        torsion = torsion + 0.5 * k * (bend - rest).square()
    if layout.z.closes[i]:  # no bond is the axis; the angles at both ends of the ring's last two bonds resist instead
        points = (
            c[:, None] + torch.cat([height[..., None].expand(-1, -1, KNOTS), radius[..., None] * turn[0]], 1).mT @ frame
        )
        torsion = torsion + _bonded(_plan(layout, y, dtype), x, points[:, None])[:, 0]
    channels = [torsion, lj, coulomb, beyond]
    channels += _branch(layout, rotor, placed, height[:, :1], radius[:, :1], turn[0], r[0])
    return torch.stack(channels, 1).clamp(-CLIP, CLIP)


def _around(
    placed: Tensor, height: Tensor, radius: Tensor, turn: Tensor, sigma: Tensor, epsilon: Tensor, charge: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lennard-Jones, Coulomb and longer-range Coulomb energies (B, KNOTS) of the atoms that turn.

    Args:
        placed: (B, J, 3) along the axis, then across. height, radius: (B, Y). turn: (Y, 2, KNOTS). Others: (Y, J, 1).
    """
    apart = (placed[:, None, :, 0] - height[..., None]).square() + radius.square()[..., None]
    apart = apart + placed[..., 1:].square().sum(-1)[:, None]
    reach = (placed[:, None, :, 1:] * (2 * radius)[..., None, None]) @ turn
    square = (apart[..., None] - reach).clamp(min=0.01)
    lj, coulomb = nonbonded(square, sigma, epsilon, charge)
    far = 0.3 * charge * long_range(square)
    return lj.sum((1, 2)), coulomb.sum((1, 2)), far.sum((1, 2))


def _bent(theta: Tensor) -> Tensor:
    """The angle kept off 0 and pi, where dihedrals are rounding errors: a ring that ideal bonds would not close."""
    return theta.clamp(0.02, math.pi - 0.02)


def long_range(square: Tensor) -> Tensor:
    """The part of Coulomb's law (1/Angstrom) that two Born radii, 2 and 4 Angstrom, judge differently."""
    return torch.rsqrt(square + 4.0) - torch.rsqrt(square + 16.0)


def _branch(
    layout: Layout, rotor: Rotor, placed: Tensor, height: Tensor, radius: Tensor, turn: Tensor, r: Tensor
) -> list[Tensor]:
    """Three channels (B, KNOTS) of the branch beyond X, at a point on the line from C through X.

    Args:
        placed: (B, J, 3) in the rotor's frame. height, radius: (B, 1) of X in it. turn: (2, KNOTS). r: |XC|.
    """
    charge, extent, heavy = rotor.beyond
    if not heavy and not charge:
        return [placed.new_zeros(len(placed), KNOTS)] * 3
    stretch = 1 + extent / r
    apart = (placed[..., 0] - height * stretch).square() + placed[..., 1:].square().sum(-1)
    reach = (placed[..., 1:] @ turn) * (2 * radius * stretch)[..., None]
    square = (apart + (radius * stretch).square())[..., None] - reach  # (B, J, KNOTS)
    square = square.clamp(min=0.01)
    order = layout.z.order[: rotor.rank]
    charges = placed.new_tensor(layout.peptide.parameters.charges[order])
    pull = (charge * COULOMB * charges)[:, None]
    near = (pull * (torch.rsqrt(square + 1.0) - SCREENING * torch.rsqrt(square + 4.0))).sum(1)
    far = (0.3 * pull * long_range(square)).sum(1)
    crowd = 0.05 * heavy**0.5 * torch.exp(-square / 8.0).sum(1)
    return [near, far, crowd]


def _bonded(plan: Plan, x: Tensor, points: Tensor) -> Tensor:
    """(B, K, S) energies of the angles and torsions that the atoms complete."""
    energy = points.new_zeros(points.shape[:3])
    for index, k, slot, constants in (plan.angles, plan.torsions):
        if not len(index):
            continue
        corners = x[:, index][:, :, None].expand(-1, -1, points.shape[2], -1, -1)  # (B, T, S, m, 3)
        own = slot[:, None, :, None]
        corners = torch.where(own, points[:, k][:, :, :, None], corners)
        if index.shape[1] == 3:
            bend = angle(*corners.unbind(-2))
            value = 0.5 * constants[:, 1, None] * (bend - constants[:, 0, None]).square()
        else:
            turn = dihedral(*corners.unbind(-2))
            value = constants[:, 2, None] * torch.cos(constants[:, 0, None] * turn - constants[:, 1, None])
        energy = energy.index_add(1, k, value)
    return energy


@dataclass(frozen=True, eq=False)
class Plan:
    """The static tensors of :func:`local_quadratic` for K ranks; J atoms come before the last of them.

    Attributes:
        references: (3, K) ranks. stencil: (S, 3). scale: (K, 3). r0, theta0, centre: (K,). closes: (K, 1).
        springs: (K, 2) of bond and angle, those that no term holds. sigma, epsilon, charge: (K, 1, J).
        angles, torsions: ranks (T, m) of each term's atoms, which of the K it belongs to (T,), where among its atoms
            that one is (T, m), and its constants (T, c).
    """

    references: Tensor
    stencil: Tensor
    scale: Tensor
    r0: Tensor
    theta0: Tensor
    centre: Tensor
    closes: Tensor
    springs: Tensor
    sigma: Tensor
    epsilon: Tensor
    charge: Tensor
    angles: tuple[Tensor, Tensor, Tensor, Tensor]
    torsions: tuple[Tensor, Tensor, Tensor, Tensor]


def _plan(layout: Layout, ranks: Tensor, dtype: torch.dtype) -> Plan:
    """The plan for these ranks, made once."""
    key = (tuple(ranks.tolist()), dtype)
    if key in layout.quadratics:
        return layout.quadratics[key]
    device = layout.device
    position = torch.full((layout.atoms,), -1, device=device)
    position[ranks] = torch.arange(len(ranks), device=device)
    before = int(ranks.max())
    placed = torch.arange(before, device=device) < ranks[:, None]

    def pairs(table: Tensor) -> Tensor:
        return table[ranks, :before].to(dtype)[:, None]

    def terms(all_terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mine = position[all_terms.owner] >= 0
        slot = torch.nn.functional.one_hot(all_terms.slot[mine], all_terms.atoms.shape[1]).bool()
        return all_terms.atoms[mine], position[all_terms.owner[mine]], slot, all_terms.constants[mine].to(dtype)

    closes = layout.limits.closes[ranks]
    plan = Plan(
        references=torch.stack([index[ranks] for index in layout.references]),
        stencil=torch.tensor(_STENCIL, dtype=dtype, device=device),
        scale=layout.scale[ranks].to(dtype),
        r0=layout.r0[ranks].to(dtype),
        theta0=layout.theta0[ranks].to(dtype),
        centre=layout.centre[ranks].to(dtype),
        closes=closes[:, None],
        # the angle B-C-X is among the angle terms; the bonds are not
        springs=torch.stack([torch.ones_like(closes.float()), closes.float()], -1).to(dtype),
        sigma=pairs(layout.sigma),
        epsilon=pairs(layout.epsilon * layout.lj) * placed[:, None],
        charge=pairs(layout.charges * layout.coulomb) * placed[:, None],
        angles=terms(layout.angles),
        torsions=terms(layout.torsions),
    )
    layout.quadratics[key] = plan
    return plan
