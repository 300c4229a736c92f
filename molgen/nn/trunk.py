"""The E(3)-equivariant network TS-GEN, Prose and the CV sampler share.

Dense message passing between all pairs of atoms, over several geometries of the same atoms at once. Node features are
scalars and vectors (`96x0e + 32x1o` in e3nn's notation), with optional parity-odd ones (`0o`, `1e`) for tasks that must
tell mirror images apart. A narrow pair state carries the geometry; attention over it moves node values, and its linear
image weighs the pair directions. Related: PaiNN (Schuett 2021), Equiformer (Liao 2022), the triangle-free pair stack of
AlphaFold's structure module (Jumper 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molgen.nn.radial import FourierTime, GaussianRadial

Odd = tuple[Tensor, Tensor]  # pseudoscalars (B, N, odd) and axial vectors (B, N, 3, odd)
Outputs = tuple[Tensor, Tensor, Odd | None]  # scalars (B, N, scalars), vectors (B, N, 3, vectors), and odd ones if any


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of a trunk.

    Attributes:
        scalars, vectors: multiplicities of 0e and 1o.
        odd: multiplicity of 0o and 1e each; 0 makes every output even under reflection (scalars) or polar (vectors).
        pair: width of the pair state. heads: attention heads. layers: depth. radial: functions a geometry.
        geometries: number of geometries; node_inputs, pair_inputs, vector_inputs, conditions: widths of the inputs.
        time: whether a time in [0, 1] is an input. dropout: on the node update.
    """

    scalars: int = 96
    vectors: int = 32
    odd: int = 0
    pair: int = 64
    heads: int = 8
    layers: int = 5
    radial: int = 16
    geometries: int = 1
    node_inputs: int = 8
    pair_inputs: int = 0
    vector_inputs: int = 0
    conditions: int = 0
    time: bool = True
    dropout: float = 0.0

    @property
    def irreps(self) -> str:
        """The node features in e3nn notation."""
        odd = f" + {self.odd}x0o + {self.odd}x1e" if self.odd else ""
        return f"{self.scalars}x0e + {self.vectors}x1o{odd}"


@dataclass
class Pairs:
    """What the layers need of every ordered pair (i of R atoms receives, j of all N sends).

    Attributes:
        mask: (B, R, N) true where j may send to i.
        directions: (B, R, 3, N * G) unit vectors from i to j, zero where j may not send; last axis (j, geometry).
        frames: (B, R, N, 3 * G + 1) the same vectors, zero only where the geometry has none, last axis (component,
            geometry), with a final 1.
        back: (B, N, R, 3 * G + 1) likewise from j to i.
    """

    mask: Tensor
    directions: Tensor
    frames: Tensor
    back: Tensor


@dataclass
class TrunkCache:
    """What a causal trunk keeps of the atoms it has seen, so that later atoms need only their own rows.

    Attributes:
        sent: what the n atoms send in each layer, see `TrunkLayer`. outputs: what `Trunk` returned for them.
    """

    sent: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    outputs: Outputs | None = None

    @property
    def seen(self) -> int:
        """How many atoms it holds."""
        return 0 if self.outputs is None else self.outputs[0].shape[1]

    def extended(self, new: Outputs) -> Outputs:
        """Keep the outputs of further atoms; returns those of all."""
        s, v, odd = new
        if self.outputs is not None:
            old_s, old_v, old_odd = self.outputs
            s, v = torch.cat([old_s, s], 1), torch.cat([old_v, v], 1)
            if odd is not None and old_odd is not None:
                odd = torch.cat([old_odd[0], odd[0]], 1), torch.cat([old_odd[1], odd[1]], 1)
        self.outputs = (s, v, odd)
        return self.outputs


class VectorNorm(nn.Module):
    """Scale the vectors (B, N, 3, V) of a node to unit mean square; a learned gain a channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, v: Tensor) -> Tensor:
        return v * torch.rsqrt(v.square().sum(-2, keepdim=True).mean(-1, keepdim=True) + 1e-2) * self.gain


class TrunkLayer(nn.Module):
    """One round: refresh the pair state, attend, collect directions, update the nodes."""

    def __init__(self, c: TrunkConfig):
        super().__init__()
        self.c = c
        s, v, p, g = c.scalars, c.vectors, c.pair, c.geometries
        self.norm_s, self.norm_v = nn.LayerNorm(s), VectorNorm(v)
        self.receive, self.send = nn.Linear(s, p), nn.Linear(s, p, bias=False)
        self.probe_receive, self.probe_send = nn.Linear(v, g * p, bias=False), nn.Linear(v, g * p, bias=False)
        self.pair_in, self.pair_out = nn.Linear(p, p, bias=False), nn.Linear(p, p)
        self.logits, self.coefficients = nn.Linear(p, c.heads), nn.Linear(p, g * v)
        self.value_s, self.value_v = nn.Linear(s, s), nn.Linear(v, v, bias=False)
        self.mix_s, self.mix_v = nn.Linear(s, s), nn.Linear(v, v, bias=False)
        self.left, self.right = nn.Linear(v, v, bias=False), nn.Linear(v, v, bias=False)
        self.inner = nn.Linear(v, s)
        o = c.odd
        update_out = nn.Linear(2 * s, 2 * s + v + 2 * o)
        self.update = nn.Sequential(nn.Linear(2 * s + v + o, 2 * s), nn.SiLU(), nn.Dropout(c.dropout), update_out)
        if o:
            self.norm_a = VectorNorm(o)
            self.cross_left, self.cross_right = nn.Linear(v, o, bias=False), nn.Linear(v, o, bias=False)
            self.axial_mix, self.polar_probe = nn.Linear(o, o, bias=False), nn.Linear(v, o, bias=False)
            self.axial_to_polar = nn.Linear(o, v, bias=False)
        nn.init.zeros_(self.pair_out.bias)
        with torch.no_grad():  # a near-identity start
            for last in (self.pair_out, update_out, self.probe_receive, self.probe_send):
                last.weight.mul_(0.3)

    def forward(
        self,
        s: Tensor,
        v: Tensor,
        odd: Odd | None,
        e: Tensor,
        pairs: Pairs,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Odd | None, Tensor, tuple[Tensor, Tensor]]:
        """Update R atoms (s, v, odd) and their pairs e from themselves and those that sent `before`.

        Returns:
            s, v, odd, e, and what all N = n + R atoms send: features along a pair (B, N, 3 G + 1, P), and values
            (B, heads, N, ...) for the attention.
        """
        c = self.c
        b, r = s.shape[:2]
        sn, vn = self.norm_s(s), self.norm_v(v)
        own_values = [
            self.value_s(sn).view(b, r, c.heads, -1),
            self.value_v(vn).view(b, r, 3, c.heads, -1).transpose(2, 3).reshape(b, r, c.heads, -1),
        ]
        sent, values = self._sides(self.send(sn), self.probe_send(vn)), torch.cat(own_values, -1).transpose(1, 2)
        if before is not None:
            sent, values = torch.cat([before[0], sent], 1), torch.cat([before[1], values], 2)
        n = sent.shape[1]

        # pair state: own features and angles (vectors of either atom along the directions between them), all linear,
        # one bmm a side: [directions, 1] @ [vectors; scalars]
        hidden = self.pair_in(e)
        hidden = hidden + pairs.frames @ self._sides(self.receive(sn), self.probe_receive(vn))
        hidden = hidden + (pairs.back @ sent).transpose(1, 2)
        e = e + self.pair_out(F.silu(hidden))

        # softmax attention, normalised after the sum; an atom nobody may send to (first in causal order) gets zero
        weight = (self.logits(e).clamp(-20, 20).exp() * pairs.mask[..., None]).permute(0, 3, 1, 2).contiguous()
        weight_sum = weight.sum(-1, keepdim=True) + 1e-9
        message = (weight @ values / weight_sum).transpose(1, 2)
        per_s = c.scalars // c.heads
        message_s = self.mix_s(message[..., :per_s].reshape(b, r, -1))
        message_v = message[..., per_s:].reshape(b, r, c.heads, 3, -1).transpose(2, 3).reshape(b, r, 3, -1)
        along = pairs.directions @ self.coefficients(e).view(b, r, n * c.geometries, c.vectors)
        v = v + self.mix_v(message_v) + along / 4.0

        left, right = self.left(v), self.right(v)
        norm = (left.square().sum(-2) + 1e-6).sqrt()
        features = [self.norm_s(s), message_s, norm]
        if odd is not None:
            pseudo, axial = odd
            axial = axial + torch.linalg.cross(self.cross_left(vn), self.cross_right(vn), dim=-2)
            pseudo = pseudo + (axial * self.polar_probe(vn)).sum(-2)
            features.append(pseudo.square())
        out = self.update(torch.cat(features, dim=-1))
        ds, gate_s, gate_v, gate_odd = out.split([c.scalars, c.scalars, c.vectors, 2 * c.odd], dim=-1)
        s = s + ds + gate_s * self.inner((left * right).sum(-2))
        v = v + gate_v[..., None, :] * left
        if odd is not None:
            gate_p, gate_a = gate_odd.chunk(2, dim=-1)
            pseudo = pseudo * torch.tanh(gate_p)
            axial = self.norm_a(axial + gate_a[..., None, :] * self.axial_mix(axial))
            v = v + self.axial_to_polar(axial * pseudo[..., None, :])
            odd = (pseudo, axial)
        return s, v, odd, e, (sent, values)

    @staticmethod
    def _sides(scalars: Tensor, vectors: Tensor) -> Tensor:
        """(B, R, 3 G + 1, P): an atom's vectors (B, R, 3, G * P), to be taken along a pair, and scalars (B, R, P)."""
        b, r, p = scalars.shape
        return torch.cat([vectors.reshape(b, r, -1, p), scalars[:, :, None]], dim=2)


class Trunk(nn.Module):
    """Scalars and vectors for every atom from several geometries of one molecule.

    Invariant to translation of each geometry, equivariant to one rotation or reflection of all of them, equivariant to
    permutation of the atoms; padding changes nothing; with a causal `pair_mask`, no output depends on a later atom.
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        c = self.config = config
        if c.scalars % c.heads or c.vectors % c.heads:
            raise ValueError(f"scalars ({c.scalars}) and vectors ({c.vectors}) must be multiples of heads ({c.heads})")
        self.radial = GaussianRadial(c.radial)
        self.time = FourierTime() if c.time else None
        extra = c.conditions + (self.time.features if self.time is not None else 0)
        self.embed_node = nn.Linear(c.node_inputs, c.scalars)
        self.embed_condition = nn.Linear(extra, c.scalars) if extra else None
        self.embed_pair = nn.Sequential(
            nn.Linear(c.geometries * c.radial + c.pair_inputs, c.pair), nn.SiLU(), nn.Linear(c.pair, c.pair)
        )
        self.embed_vector = nn.Linear(c.vector_inputs, c.vectors, bias=False) if c.vector_inputs else None
        self.layers = nn.ModuleList(TrunkLayer(c) for _ in range(c.layers))
        self.final_s = nn.LayerNorm(c.scalars)

    def forward(
        self,
        nodes: Tensor,
        geometries: Sequence[Tensor],
        mask: Tensor,
        *,
        geometry_masks: Sequence[Tensor | None] | None = None,
        pair_mask: Tensor | None = None,
        pair_features: Tensor | None = None,
        vector_features: Tensor | None = None,
        condition: Tensor | None = None,
        time: Tensor | None = None,
        cache: TrunkCache | None = None,
    ) -> Outputs:
        """Run the network.

        Args:
            nodes: (B, N, node_inputs) invariant atom features.
            geometries: G tensors (B, N, 3), Angstrom.
            mask: (B, N) true for real atoms.
            geometry_masks: for each geometry (B, N, N) true where its distance means something, or None for all pairs.
            pair_mask: (B, N, N) true where j may send to i (causal order); None lets all real pairs talk.
            pair_features: (B, N, N, pair_inputs). vector_features: (B, N, 3, vector_inputs), polar.
            condition: (B, conditions). time: (B,) in [0, 1].
            cache: what an earlier call left of the first atoms, updated in place (empty at first). Only the rows of the
                others are computed: the same result if `pair_mask` is causal, nothing said of the first atoms has
                changed, and gradients are not needed.

        Returns:
            scalars (B, N, scalars), vectors (B, N, 3, vectors) and, if `odd`, pseudoscalars (B, N, odd) with axial
            vectors (B, N, 3, odd), else None.
        """
        seen = 0 if cache is None else cache.seen
        real = mask[:, :, None] & mask[:, None, :]
        real = real & ~torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
        allowed = (real if pair_mask is None else real & pair_mask)[:, seen:]
        pairs, features = self._pairs(geometries, geometry_masks, real, allowed)
        if pair_features is not None:
            features = [*features, pair_features[:, seen:]]
        e = self.embed_pair(torch.cat(features, dim=-1))
        arrows = None if vector_features is None else vector_features[:, seen:]
        s, v, odd = self._nodes(nodes[:, seen:], arrows, condition, time)
        for k, layer in enumerate(self.layers):
            s, v, odd, e, sent = layer(s, v, odd, e, pairs, cache.sent[k] if cache is not None and seen else None)
            if cache is not None:
                cache.sent[k : k + 1] = [sent]
        m = mask[:, seen:, None]
        if odd is not None:
            odd = (odd[0] * m, odd[1] * m[..., None])
        new = self.final_s(s) * m, v * m[..., None], odd
        return new if cache is None else cache.extended(new)

    def _pairs(
        self,
        geometries: Sequence[Tensor],
        geometry_masks: Sequence[Tensor | None] | None,
        real: Tensor,
        allowed: Tensor,
    ) -> tuple[Pairs, list[Tensor]]:
        """The pairs of the last R atoms with all N, and radial features (B, R, N, radial) of each geometry.

        Args:
            real: (B, N, N) true for pairs of two real atoms. allowed: (B, R, N) true where j may send to i.
        """
        b, r, n = allowed.shape
        rows = slice(n - r, n)
        radial, there, back = [], [], []
        for k, x in enumerate(geometries):
            keep = None if geometry_masks is None else geometry_masks[k]
            keep = (real if keep is None else real & keep)[..., None]
            difference = x[:, None] - x[:, rows, None]
            distance = (difference.square().sum(-1, keepdim=True) + 1e-12).sqrt()
            unit = difference / distance
            radial.append(self.radial(distance[..., 0]) * keep[:, rows])
            there.append(unit * keep[:, rows])
            back.append(there[-1] if r == n else -unit.transpose(1, 2) * keep[:, :, rows])
        units = torch.stack(there, dim=-1)  # (B, R, N, 3, G)
        directions = (units * allowed[..., None, None]).permute(0, 1, 3, 2, 4).reshape(b, r, 3, n * len(geometries))
        frames = _frames(units)
        return Pairs(allowed, directions, frames, frames if r == n else _frames(torch.stack(back, dim=-1))), radial

    def _nodes(
        self, nodes: Tensor, vector_features: Tensor | None, condition: Tensor | None, time: Tensor | None
    ) -> Outputs:
        """What the first layer is given of R atoms: nodes (B, R, node_inputs), vectors (B, R, 3, vector_inputs)."""
        c, (b, r) = self.config, nodes.shape[:2]
        s = self.embed_node(nodes)
        if self.embed_condition is not None:
            parts = [] if condition is None else [condition]
            if self.time is not None:
                assert time is not None, "this trunk was built with a time input"
                parts.append(self.time(time))
            s = s + self.embed_condition(torch.cat(parts, dim=-1))[:, None]
        if self.embed_vector is not None:
            assert vector_features is not None, "this trunk was built with vector inputs"
            v = self.embed_vector(vector_features)
        else:
            v = s.new_zeros(b, r, 3, c.vectors)
        odd = (s.new_zeros(b, r, c.odd), s.new_zeros(b, r, 3, c.odd)) if c.odd else None
        return s, v, odd


def _frames(units: Tensor) -> Tensor:
    """The frames of `Pairs`, from unit vectors (B, R, N, 3, G)."""
    return torch.cat([units.flatten(3), units.new_ones(*units.shape[:3], 1)], dim=-1)
