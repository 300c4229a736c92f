"""Geometries from target distances: the guess that needs no learning, and the prior of TS-GEN.

Target distance of a pair: sqrt(d_R d_P), weight 1/d^4; embedded by stress majorisation (SMACOF, de Leeuw 1977) from
the midpoint of the superposed end points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from molgen.geometry.align import superpose, superpose_fragments

APART_STRETCH = 1.15  # a pair that is together on one side only: its target is that side's distance, stretched
APART_WEIGHT = 0.25
UNKNOWN_DISTANCE = 4.0  # Angstrom, pairs that are apart on both sides
UNKNOWN_WEIGHT = 0.02
CROWDED = 1.3  # Angstrom; a pair that is apart on both sides and closer than this in the guess is pushed apart
CLEARANCE = 2.5  # Angstrom, the target it then has, at the weight of a pair together on one side
OPEN = 1e-6  # Angstrom^2, see kabsch
LINEAR = 0.01  # second principal extent over the first, below which atoms count as collinear


def place_together(r: Tensor, p: Tensor, r_frag: Tensor, p_frag: Tensor) -> tuple[Tensor, Tensor]:
    """Reactant and product in one frame, whatever the fragments' original placement.

    The side with fewer fragments is the frame; every fragment of the other side is superposed on it. When both sides
    have several fragments, the frame's smaller fragments are first brought next to the largest through the other side.

    Args:
        r, p: (B, N, 3) positions. r_frag, p_frag: (B, N) fragment indices, -1 for padding.
    """
    n_r, n_p = r_frag.amax(1), p_frag.amax(1)
    tie = (n_r == n_p) & (_extent(r, r_frag) > _extent(p, p_frag))  # the same frame, whichever side is called reactant
    swap = ((n_r > n_p) | tie)[:, None, None]
    frame, other = torch.where(swap, p, r), torch.where(swap, r, p)
    frame_frag = torch.where(swap[..., 0], p_frag, r_frag)
    other_frag = torch.where(swap[..., 0], r_frag, p_frag)
    if int(torch.minimum(n_r, n_p).max()) > 0:
        frame = _gather_fragments(frame, other, frame_frag, other_frag)
    other = superpose_fragments(other, frame, other_frag)
    return torch.where(swap, other, frame), torch.where(swap, frame, other)


def _extent(x: Tensor, fragments: Tensor) -> Tensor:
    """Sum (B,) of the distances within fragments."""
    same = (fragments[:, :, None] == fragments[:, None, :]) & (fragments >= 0)[:, None]
    return (torch.cdist(x, x) * same).sum((1, 2))


def _gather_fragments(frame: Tensor, other: Tensor, frame_frag: Tensor, other_frag: Tensor) -> Tensor:
    """Move the frame's fragments to where the other side's bonds want them: largest first, then what touches it."""
    frame = frame.clone()
    for b in torch.nonzero(torch.minimum(frame_frag.amax(1), other_frag.amax(1)) > 0)[:, 0].tolist():
        mine, theirs = frame_frag[b], other_frag[b]
        position, wanted = _body_frames(frame[b], mine), _body_frames(other[b], theirs)
        loose = mine >= 0
        loose[mine == torch.bincount(mine[loose]).argmax()] = False
        while loose.any():
            bridges = [(int((~loose & (theirs == k)).sum()), k) for k in theirs[loose].unique().tolist()]
            held, k = max(bridges)
            if not held:
                break  # nothing connects the rest to what is placed: it stays where it is
            bridge = theirs == k
            moved = superpose(wanted, position, (bridge & ~loose).to(frame.dtype), OPEN)
            for g in mine[bridge & loose].unique().tolist():
                members = mine == g
                position[members] = superpose(position, moved, (members & bridge).to(frame.dtype), OPEN)[members]
                loose = loose & ~members
        frame[b] = position
    return frame


def _body_frames(x: Tensor, fragments: Tensor) -> Tensor:
    """Each fragment of x (N, 3) in a frame of its own: where it was put is forgotten.

    One or two bridging atoms leave a rotation open; it then depends on the molecule alone. The axes point to the first
    atom off the centre and the first off that axis.
    """
    out = x.clone()
    for k in range(int(fragments.max()) + 1):
        member = fragments == k
        centred = x[member] - x[member].mean(0)
        axes: list[Tensor] = []
        rest = centred
        for _ in range(2):
            length = rest.norm(dim=1)
            if length.max() > 1e-6:
                first = int(torch.nonzero(length > 0.1 * length.max())[0])
                axes.append(rest[first] / length[first])
                rest = rest - (rest @ axes[-1])[:, None] * axes[-1]
        if len(axes) == 2:
            axes.append(torch.linalg.cross(axes[0], axes[1]))
        out[member] = F.pad(centred @ torch.stack(axes, dim=1), (0, 3 - len(axes))) if axes else centred
    return out


def target_distances(r: Tensor, p: Tensor, same_r: Tensor, same_p: Tensor) -> tuple[Tensor, Tensor]:
    """Target distances and weights (B, N, N) from both sides' distances; `same_*` (B, N, N): pair in one fragment."""
    d_r, d_p = torch.cdist(r, r), torch.cdist(p, p)
    both, only_r, only_p = same_r & same_p, same_r & ~same_p, same_p & ~same_r
    target = torch.full_like(d_r, UNKNOWN_DISTANCE)
    target = torch.where(only_r, APART_STRETCH * d_r, torch.where(only_p, APART_STRETCH * d_p, target))
    target = torch.where(both, (d_r * d_p).clamp_min(1e-12).sqrt(), target)
    scale = torch.where(both, 1.0, torch.where(only_r | only_p, APART_WEIGHT, UNKNOWN_WEIGHT)).to(target)
    return target, scale / target.clamp_min(0.5) ** 4


def embed_distances(start: Tensor, target: Tensor, weight: Tensor, mask: Tensor, iterations: int = 300) -> Tensor:
    """Minimise sum w_ij (|x_i - x_j| - target_ij)^2 from `start` (B, N, 3) by SMACOF (Guttman transforms).

    `mask` (B, N) marks real atoms. The number of iterations is fixed, so the result is the same whatever the batch.
    """
    n = start.shape[1]
    pair = mask[:, :, None] & mask[:, None, :] & ~torch.eye(n, dtype=torch.bool, device=start.device)
    w = torch.where(pair, weight, 0.0)
    laplacian = torch.diag_embed(w.sum(-1)) - w
    # the constant vector spans the Laplacian's null space: shift it, and give padding a unit diagonal
    m = mask.to(start.dtype)
    shift = m[:, :, None] * m[:, None, :] / m.sum(1)[:, None, None] * w.amax((1, 2))[:, None, None]
    inverse = torch.linalg.inv(laplacian + shift + torch.diag_embed(1 - m))
    x = (start - (start * m[..., None]).sum(1, keepdim=True) / m.sum(1)[:, None, None]) * m[..., None]
    wt = w * target
    for _ in range(iterations):
        ratio = wt / torch.cdist(x, x).clamp_min(1e-6)
        x_new = inverse @ (ratio.sum(-1, keepdim=True) * x - ratio @ x)
        x = x_new * m[..., None]
    return x


def _unstretched(start: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Replace a start whose atoms lie on one line by classical scaling of the targets (Torgerson 1952).

    A line stays a line under stress majorisation and under any equivariant network: HCN -> HNC would never bend.
    """
    weight = mask.to(start.dtype)[..., None]
    centre = (start * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
    extent = torch.linalg.svdvals((start - centre) * weight)
    start = start.clone()
    for b in torch.nonzero(extent[:, 1] < LINEAR * extent[:, 0])[:, 0].tolist():
        atoms = mask[b]
        square = target[b][atoms][:, atoms].fill_diagonal_(0).square()
        centred = square - square.mean(0) - square.mean(1, keepdim=True) + square.mean()
        values, vectors = torch.linalg.eigh(-0.5 * centred)
        scaled = (vectors * values.clamp_min(0).sqrt())[:, -3:].flip(-1).to(start)
        start[b, atoms] = F.pad(scaled, (0, 3 - scaled.shape[1]))
    return start


def sqrt_distance_guess(
    r: Tensor, p: Tensor, r_frag: Tensor, p_frag: Tensor, iterations: int = 300
) -> tuple[Tensor, Tensor, Tensor]:
    """The sqrt-distance guess with both end points superposed on it.

    Args:
        r, p: (B, N, 3) float64 Angstrom, atoms mapped. r_frag, p_frag: (B, N) fragment index, -1 for padding.

    Returns:
        guess, reactant, product: (B, N, 3) each, one common frame, guess centred; each fragment of the reactant and of
        the product is superposed on the guess by itself, so where the user put the fragments does not matter.
    """
    mask = r_frag >= 0
    r0, p0 = place_together(r, p, r_frag, p_frag)
    same_r = r_frag[:, :, None] == r_frag[:, None, :]
    same_p = p_frag[:, :, None] == p_frag[:, None, :]
    target, weight = target_distances(r, p, same_r, same_p)
    start = _unstretched((r0 + p0) / 2, target, mask)
    guess = embed_distances(start, target, weight, mask, iterations)
    crowded = (torch.cdist(guess, guess) < CROWDED) & ~same_r & ~same_p & mask[:, :, None] & mask[:, None, :]
    for b in torch.nonzero(crowded.any((1, 2)))[:, 0].tolist():
        target[b, crowded[b]], weight[b, crowded[b]] = CLEARANCE, APART_WEIGHT / CLEARANCE**4
        one = slice(b, b + 1)
        guess[one] = embed_distances(guess[one], target[one], weight[one], mask[one], iterations)
    return guess, superpose_fragments(r0, guess, r_frag), superpose_fragments(p0, guess, p_frag)
