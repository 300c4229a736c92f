"""The trunk written with e3nn's modules over a list of edges: test_trunk.py's oracle, benchmarks/trunk.py's peer.

The scalar parts (norms, MLPs, radial functions) are the trunk's own modules; everything that touches a vector goes
through `o3.Linear` and `o3.TensorProduct`, whose irreps say what is even, odd, polar and axial. e3nn >= 0.4 orders the
components of l = 1 as x, y, z, and puts channels outermost: (E, V * 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from e3nn import o3
from torch import Tensor, nn

from molgen.nn.trunk import Trunk, TrunkConfig, TrunkLayer, VectorNorm


def linear(dense: nn.Module, parity: str = "1o") -> o3.Linear:
    """An o3.Linear with the weights of a bias-free `dense`; e3nn stores (inputs, outputs), scaled by sqrt(inputs)."""
    assert isinstance(dense, nn.Linear) and dense.bias is None
    out = o3.Linear(f"{dense.in_features}x{parity}", f"{dense.out_features}x{parity}")
    out.weight.data = (dense.weight.detach().T * dense.in_features**0.5).flatten().clone()
    return out


def product(in1: str, in2: str, out: str, instructions: list[tuple], weights: bool = False) -> o3.TensorProduct:
    """A TensorProduct without path normalisation: 0 x 1 -> 1 is the product, 1 x 1 -> 0 the dot product / sqrt(3),
    1 x 1 -> 1 the cross product / sqrt(2), each times the root of the instruction's path weight."""
    return o3.TensorProduct(
        in1, in2, out, instructions, irrep_normalization="component", path_normalization="none",
        internal_weights=False if weights else None, shared_weights=False if weights else None,
    )  # fmt: skip


class Products(nn.Module):
    """The tensor products of a layer; they hold no weights, so all layers share them."""

    def __init__(self, c: TrunkConfig):
        super().__init__()
        s, v, p, g, o = c.scalars, c.vectors, c.pair, c.geometries, c.odd
        each = " + ".join([f"{p}x1o"] * g)
        self.angle = product(
            each, " + ".join(["1x1o"] * g), f"{p}x0e", [(k, k, 0, "uvu", False, 3.0) for k in range(g)]
        )
        # attention moves scalars and vectors, coefficients weigh the directions; every weight belongs to an edge
        self.message = product(
            f"{s}x0e + {v}x1o + 1x0e",
            f"1x0e + {g}x1o",
            f"{s}x0e + {v}x1o + {v}x1o",
            [(0, 0, 0, "uvu", True), (1, 0, 1, "uvu", True), (2, 1, 2, "uvw", True)],
            weights=True,
        )
        self.dot = product(f"{v}x1o", f"{v}x1o", f"{v}x0e", [(0, 0, 0, "uuu", False, 3.0)])
        self.gate = product(f"{v}x0e", f"{v}x1o", f"{v}x1o", [(0, 0, 0, "uuu", False)])
        if o:
            self.cross = product(f"{o}x1o", f"{o}x1o", f"{o}x1e", [(0, 0, 0, "uuu", False, 2.0)])
            self.pseudo = product(f"{o}x1e", f"{o}x1o", f"{o}x0o", [(0, 0, 0, "uuu", False, 3.0)])
            self.gate_axial = product(f"{o}x0e", f"{o}x1e", f"{o}x1e", [(0, 0, 0, "uuu", False)])
            self.to_polar = product(f"{o}x0o", f"{o}x1e", f"{o}x1o", [(0, 0, 0, "uuu", False)])


def vector_norm(norm: VectorNorm, v: Tensor) -> Tensor:
    w = v.unflatten(-1, (-1, 3))
    return (w * torch.rsqrt(w.square().sum(-1).mean(-1) + 1e-2)[:, None, None] * norm.gain[:, None]).flatten(-2)


class E3nnLayer(nn.Module):
    """A TrunkLayer of the same weights."""

    def __init__(self, layer: nn.Module, products: Products):
        super().__init__()
        assert isinstance(layer, TrunkLayer)
        self.layer, self.products = layer, products
        polar = ["probe_receive", "probe_send", "value_v", "mix_v", "left", "right"]
        if layer.c.odd:
            polar += ["cross_left", "cross_right", "polar_probe", "axial_to_polar"]
        self.linear = nn.ModuleDict({name: linear(layer.get_submodule(name)) for name in polar})
        if layer.c.odd:
            self.linear["axial_mix"] = linear(layer.axial_mix, "1e")

    def forward(self, s: Tensor, v: Tensor, odd, e: Tensor, i: Tensor, j: Tensor, unit: Tensor):
        """s (M, S), v (M, V * 3), e (E, P), receivers i and senders j (E,), unit (E, G * 3) from i to j."""
        layer, tp, c = self.layer, self.products, self.layer.c
        sn, vn = layer.norm_s(s), vector_norm(layer.norm_v, v)

        hidden = layer.pair_in(e) + layer.receive(sn)[i] + layer.send(sn)[j]
        hidden = (
            hidden
            + tp.angle(self.linear["probe_receive"](vn)[i], unit)
            - tp.angle(self.linear["probe_send"](vn)[j], unit)
        )
        e = e + layer.pair_out(F.silu(hidden))

        weight = layer.logits(e).clamp(-20, 20).exp()
        total = weight.new_zeros(len(s), c.heads).index_add(0, i, weight) + 1e-9
        weight = weight / total[i]
        per_edge = torch.cat(
            [
                weight.repeat_interleave(c.scalars // c.heads, 1),
                weight.repeat_interleave(c.vectors // c.heads, 1),
                layer.coefficients(e).to(weight) / 4.0,
            ],
            dim=1,
        )
        values = torch.cat([layer.value_s(sn), self.linear["value_v"](vn), s.new_ones(len(s), 1)], dim=1)
        edges = tp.message(values[j], torch.cat([unit.new_ones(len(unit), 1), unit], dim=1), per_edge)
        gathered = edges.new_zeros(len(s), edges.shape[1]).index_add(0, i, edges)
        message_s, message_v, along = gathered.split([c.scalars, 3 * c.vectors, 3 * c.vectors], dim=1)
        v = v + self.linear["mix_v"](message_v) + along

        left, right = self.linear["left"](v), self.linear["right"](v)
        features = [layer.norm_s(s), layer.mix_s(message_s), (tp.dot(left, left) + 1e-6).sqrt()]
        if odd is not None:
            pseudo, axial = odd
            axial = axial + tp.cross(self.linear["cross_left"](vn), self.linear["cross_right"](vn))
            pseudo = pseudo + tp.pseudo(axial, self.linear["polar_probe"](vn))
            features.append(pseudo.square())
        out = layer.update(torch.cat(features, dim=-1))
        ds, gate_s, gate_v, gate_odd = out.split([c.scalars, c.scalars, c.vectors, 2 * c.odd], dim=-1)
        s = s + ds + gate_s * layer.inner(tp.dot(left, right))
        v = v + tp.gate(gate_v, left)
        if odd is not None:
            gate_p, gate_a = gate_odd.chunk(2, dim=-1)
            pseudo = pseudo * torch.tanh(gate_p)
            axial = vector_norm(layer.norm_a, axial + tp.gate_axial(gate_a, self.linear["axial_mix"](axial)))
            v = v + self.linear["axial_to_polar"](tp.to_polar(pseudo, axial))
            odd = (pseudo, axial)
        return s, v, odd, e


class E3nnTrunk(nn.Module):
    """A Trunk of the same weights and signature."""

    def __init__(self, trunk: Trunk):
        super().__init__()
        self.trunk = trunk
        products = Products(trunk.config)
        self.layers = nn.ModuleList(E3nnLayer(layer, products) for layer in trunk.layers)

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
    ):
        trunk, c = self.trunk, self.trunk.config
        b, n = nodes.shape[:2]
        allowed = mask[:, :, None] & mask[:, None, :] & ~torch.eye(n, dtype=torch.bool)
        allowed = allowed if pair_mask is None else allowed & pair_mask
        row, receiver, sender = allowed.nonzero(as_tuple=True)
        i, j = row * n + receiver, row * n + sender
        radial, units = [], []
        for k, x in enumerate(geometries):
            keep = None if geometry_masks is None else geometry_masks[k]
            keep = 1.0 if keep is None else keep[row, receiver, sender][:, None].to(x)
            d = x.flatten(0, 1)[j] - x.flatten(0, 1)[i]
            distance = (d.square().sum(-1, keepdim=True) + 1e-12).sqrt()
            radial.append(trunk.radial(distance[:, 0]) * keep)
            units.append(d / distance * keep)
        if pair_features is not None:
            radial.append(pair_features[row, receiver, sender])
        e, unit = trunk.embed_pair(torch.cat(radial, dim=-1)), torch.cat(units, dim=-1)

        s = trunk.embed_node(nodes)
        if trunk.embed_condition is not None:
            parts = [] if condition is None else [condition]
            if trunk.time is not None and time is not None:
                parts.append(trunk.time(time))
            s = s + trunk.embed_condition(torch.cat(parts, dim=-1))[:, None]
        s = s.flatten(0, 1)
        v = s.new_zeros(b * n, 3 * c.vectors)
        if trunk.embed_vector is not None and vector_features is not None:
            v = trunk.embed_vector(vector_features).flatten(0, 1).mT.flatten(1)
        odd = (s.new_zeros(b * n, c.odd), s.new_zeros(b * n, 3 * c.odd)) if c.odd else None
        for layer in self.layers:
            s, v, odd, e = layer(s, v, odd, e, i, j, unit)

        def dense(x: Tensor, vector: bool = False) -> Tensor:
            x = x.unflatten(0, (b, n))
            return x.unflatten(-1, (-1, 3)).mT if vector else x

        m = mask[..., None]
        out_odd = None if odd is None else (dense(odd[0]), dense(odd[1], vector=True))
        return trunk.final_s(dense(s)) * m, dense(v, vector=True) * m[..., None], out_odd
