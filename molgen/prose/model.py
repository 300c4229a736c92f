"""Prose: an autoregressive flow over the internal coordinates of any peptide.

Each atom's r, theta | r and phi | r, theta are one-dimensional conditionals of the atoms placed before it. The force
field supplies a first guess of every one (:mod:`molgen.prose.physics`); the network corrects it. A graph encoder sees
the whole molecule without positions, the shared trunk reads the placed heavy atoms under a causal mask, and a query
for each atom, which never sees that atom's position, gathers both in the frame of its reference atoms.

Source of the task: Prose, arXiv 2508.18175 (a Cartesian flow); the internal-coordinate model is molgen's own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molgen.flow.splines import SPLINE_PARAMETERS, circular_log_density, circular_quantile
from molgen.nn.neighbours import SumOfSilu
from molgen.nn.radial import GaussianRadial
from molgen.nn.trunk import Trunk, TrunkCache, TrunkConfig
from molgen.prose.conditional import Conditional
from molgen.prose.layout import NODE_FEATURES, Layout
from molgen.prose.limits import windows, within
from molgen.prose.physics import CHANNELS, KNOTS
from molgen.prose.rows import Rows
from molgen.prose.state import CompleteState, Local, State, broad_positions

OWN = 7  # own coordinates of a placed atom: r, theta, narrow phi; cos and sin of phi and 2 phi
FOURIER = 8
FLOOR = 14.0  # no angle is less likely than e^-14 of the likeliest


@dataclass(frozen=True)
class ProseConfig:
    """Sizes: width of queries and encoder, of the hidden layer of heads and of circular convolutions; the trunk's."""

    width: int = 96
    head: int = 64
    channels: int = 16
    encoder_layers: int = 4
    scalars: int = 64
    vectors: int = 16
    pair: int = 32
    heads: int = 4
    layers: int = 2
    radial: int = 12


CONFIGS: dict[str, dict[str, int]] = {
    "small": {"layers": 4},
    "base": {"width": 192, "head": 128, "channels": 32, "scalars": 128, "vectors": 32, "pair": 64, "layers": 4},
}


class Encoder(nn.Module):
    """Message passing over bonds, without positions: what an atom is and what is still to come around it."""

    def __init__(self, width: int, layers: int):
        super().__init__()
        self.embed = nn.Linear(NODE_FEATURES, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.updates = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(layers)
        )

    def forward(self, nodes: Tensor, bonds: Tensor) -> Tensor:
        """(N, width) from nodes (N, NODE_FEATURES) and bonds (2, 2M)."""
        h = self.embed(nodes)
        adjacency = h.new_zeros(len(h), len(h))
        adjacency.index_put_((bonds[0], bonds[1]), h.new_full((bonds.shape[1],), 0.5))
        for norm, update in zip(self.norms, self.updates, strict=True):
            x = norm(h)
            h = h + update(torch.cat([x, adjacency @ x], -1))
        return h


class ProseFlow(nn.Module):
    """The flow; densities are exact, in the volume of Cartesian space without rigid motion (1/Angstrom^(3N-6))."""

    def __init__(self, config: ProseConfig | dict | None = None):
        super().__init__()
        c = self.config = config if isinstance(config, ProseConfig) else ProseConfig(**(config or {}))
        w, v = c.width, c.vectors
        self.encoder = Encoder(w, c.encoder_layers)
        self.role = nn.Sequential(nn.Linear(4 * w, w), nn.SiLU(), nn.Linear(w, w))
        self.to_trunk = nn.Linear(w, c.scalars)
        self.trunk = Trunk(
            TrunkConfig(
                scalars=c.scalars,
                vectors=v,
                pair=c.pair,
                heads=c.heads,
                layers=c.layers,
                radial=c.radial,
                node_inputs=c.scalars + OWN,
                pair_inputs=9,
                conditions=2,
                time=False,
            )  # fmt: skip
        )
        self.temperature = nn.Linear(2, w)
        # placed atoms close in bonds, by their own coordinates
        self.near_query, self.near_static = nn.Linear(w, w), nn.Linear(w, w, bias=False)
        self.near_own, self.near_hops = nn.Linear(OWN, w, bias=False), nn.Embedding(8, w)
        self.near_out = nn.Linear(w, w, bias=False)
        # placed heavy atoms, by their position in the frame of the query
        self.radial = GaussianRadial(c.radial)
        self.far_query, self.far_key = nn.Linear(w, c.scalars), nn.Linear(c.scalars, c.scalars, bias=False)
        self.far_geometry = nn.Linear(c.radial + 6, c.scalars, bias=False)
        self.far_out, self.far_weights = nn.Linear(c.scalars, w, bias=False), nn.Linear(c.scalars, c.heads)
        self.far_vectors = nn.Linear(3 * v, w, bias=False)
        self.centre = nn.Linear(c.scalars + 3 * v, w, bias=False)
        self.hints = nn.Linear(6, w, bias=False)
        self.norm = nn.LayerNorm(w)
        self.mix = nn.Sequential(nn.Linear(w, 2 * w), nn.SiLU(), nn.Linear(2 * w, w))
        # heads: r, theta, phi of every atom
        self.head_in = nn.Linear(w, 3 * c.head)
        self.head_known = nn.Parameter(torch.randn(2, 2, c.head) * 0.1)
        self.head_out = nn.Parameter(torch.zeros(3, c.head, 2 + SPLINE_PARAMETERS))
        # broad dihedrals: circular convolutions over the scan
        self.scan_in = nn.Conv1d(CHANNELS + 1, c.channels, 5, padding=2, padding_mode="circular")
        self.scan_condition = nn.Linear(w + 2, c.channels)
        self.scan_mid = nn.Conv1d(c.channels, c.channels, 5, padding=2, padding_mode="circular")
        self.scan_out = nn.Conv1d(c.channels, 1, 5, padding=2, padding_mode="circular", bias=False)
        self.scan_global = nn.Sequential(nn.Linear(w + 2, w), nn.SiLU(), nn.Linear(w, CHANNELS + 2 * FOURIER))
        for last in (self.scan_global[-1], self.scan_out):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        angle = torch.arange(KNOTS) * (2 * torch.pi / KNOTS) - torch.pi
        order = torch.arange(1, FOURIER + 1)[:, None]
        self.waves: Tensor
        self.plain: Tensor
        self.register_buffer("plain", (torch.arange(CHANNELS) < 3).float(), persistent=False)
        self.register_buffer("waves", torch.cat([(order * angle).cos(), (order * angle).sin()]), persistent=False)

    def encode(self, layout: Layout) -> Tensor:
        """(N, width) what every atom is, from the bonds alone."""
        return self.encoder(layout.nodes.to(self.waves.dtype), layout.bonds)

    def content(
        self, layout: Layout, state: State, h: Tensor, upto: int | None = None, cache: TrunkCache | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scalars (B, H, S) and vectors (B, H, 3, V) of the heavy atoms below rank `upto`; h is :meth:`encode`'s.

        With a cache, the atoms it holds are not computed again.
        """
        heavy = layout.heavy if upto is None else layout.heavy[layout.heavy < upto]
        b, n = len(state.x), len(heavy)
        if not n:
            return state.x.new_zeros(b, 0, self.config.scalars), state.x.new_zeros(b, 0, 3, self.config.vectors)
        static = self.to_trunk(h[heavy]).expand(b, -1, -1)
        hops = layout.hops[:n, :n].to(state.x.dtype)
        causal = torch.ones(n, n, dtype=torch.bool, device=h.device).tril(-1)
        s, v, _ = self.trunk(
            torch.cat([static, state.own[:, heavy]], -1),
            [state.x[:, heavy]],
            torch.ones(b, n, dtype=torch.bool, device=h.device),
            pair_mask=causal.expand(b, n, n),
            pair_features=hops.expand(b, n, n, 9),
            condition=state.condition,
            cache=cache,
        )
        return s, v

    def queries(
        self, layout: Layout, state: State, h: Tensor, content: tuple[Tensor, Tensor], rows: Rows, local: Local
    ) -> Tensor:
        """(B, K, width) what is known of each atom of `rows` before it is placed."""
        s, v = content
        role = self.role(torch.cat([h[rows.ranks], h[rows.c], h[rows.b], h[rows.a]], -1))
        q = role + self.temperature(state.condition)[:, None]

        message = self.near_query(role)[:, None] + self.near_static(h)[rows.near] + self.near_hops(rows.hops)
        near_own = self.near_own(state.own[:, rows.used])
        q = q + self.near_out(SumOfSilu.apply(message, near_own, rows.near_at, rows.slots))

        count = s.shape[1]
        heavy = layout.heavy[:count]
        frame, centre = state.frames(rows)  # (B, K, 3, 3), (B, K, 3)
        # from afar for broad dihedrals only: of the rest, the force field's hints say what distant atoms do to them
        broad = rows.broad_at
        if len(broad) and count:
            axes = frame[:, broad]
            relative = (state.x[:, None, heavy] - centre[:, broad, None]) @ axes.transpose(-1, -2)  # (B, K', H, 3)
            distance = (relative.square().sum(-1) + 1e-6).sqrt()
            geometry = [self.radial(distance), relative / distance[..., None], relative * 0.2]
            hidden = self.far_geometry(torch.cat(geometry, -1))
            hidden = hidden + self.far_query(role)[broad, None] + self.far_key(s)[:, None]
            before = (heavy < rows.ranks[broad, None]).to(q.dtype)[..., None]
            hidden = F.silu(hidden) * before
            weights = self.far_weights(hidden) * before  # (B, K', H, heads)
            vectors = v.unflatten(-1, (self.config.heads, -1)).permute(0, 3, 1, 2, 4).flatten(3)  # (B, h, H, 3V/h)
            summed = (weights.permute(0, 3, 1, 2) @ vectors).unflatten(-1, (3, -1))  # (B, h, K', 3, V/h)
            seen = axes @ summed.permute(0, 2, 3, 1, 4).flatten(3)  # (B, K', 3, V)
            q = q.index_add(1, broad, (self.far_out(hidden.sum(2)) + self.far_vectors(seen.flatten(2))) * 0.3)

        if count:
            at = rows.attached.clamp(max=count - 1)
            q = q + self.centre(torch.cat([s[:, at], (frame @ v[:, at]).flatten(2)], -1)) * rows.after.to(q.dtype)
        q = q + self.hints(local.hints(state.kt))
        return q + self.mix(self.norm(q))

    def _line(self, q: Tensor, kind: int, known: Tensor) -> Tensor:
        """Parameters (B, K, 2 + splines) of r (0), theta (1) or phi (2), given the standardised ones before it."""
        width = self.config.head
        hidden = q[..., kind * width : (kind + 1) * width]
        if kind:
            hidden = hidden + known[..., :kind] @ self.head_known[kind - 1, :kind]
        return F.silu(hidden) @ self.head_out[kind]

    @staticmethod
    def _limited(
        rows: Rows, x: Tensor, q: Tensor, kind: int, units: tuple[Tensor, Tensor], parameters: Tensor
    ) -> Conditional:
        """The conditional of standardised steps within `windows` (rows, x, q, kind); units: mean and log inverse width
        (B, K) of the steps."""
        mean, log_scale = units
        unit, ideal = (t[:, kind].to(mean.dtype) for t in (rows.scale, rows.ideal))
        edges = windows(rows, x, q, kind)
        # of what has no limit it is infinite, and infinity has no gradient
        steps = (((edge - ideal) / unit).clamp(-1e3, 1e3) for edge in edges)
        return Conditional.of(parameters, *((step - mean) * log_scale.exp() for step in steps))

    def _circle(self, q: Tensor, known: Tensor, energies: Tensor, kt: Tensor) -> Tensor:
        """Log-density (B, R, KNOTS), unnormalised, from scans (B, R, CHANNELS, KNOTS) in eV."""
        b, r = q.shape[:2]
        condition = torch.cat([q, known], -1)
        scaled = energies / kt[:, None, None, None]
        scaled = scaled - scaled.amin(-1, keepdim=True)
        soft = 10 * torch.tanh(scaled / 10)
        total = 10 * torch.tanh(scaled[:, :, :3].sum(2, keepdim=True) / 10)
        x = self.scan_in(torch.cat([soft, total], 2).flatten(0, 1) * 0.2)
        x = F.silu(x + self.scan_condition(condition).flatten(0, 1)[..., None])
        x = self.scan_out(x + F.silu(self.scan_mid(x))).view(b, r, KNOTS)
        weights = self.scan_global(condition)
        mixed = ((weights[..., :CHANNELS] - self.plain)[..., None] * soft).sum(2) + weights[..., CHANNELS:] @ self.waves
        heights = mixed + x
        return FLOOR * torch.tanh((heights - heights.amax(-1, keepdim=True)) / FLOOR)

    def log_density(self, layout: Layout, state: CompleteState, content: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B,) log-density of all internal coordinates of a complete state, without the volume element.

        `content`: what :meth:`content` gave for all of its atoms, where that is known.
        """
        n = layout.atoms
        h = self.encode(layout)
        everything = Rows.of(layout, range(n))
        q = self.queries(layout, state, h, content or self.content(layout, state, h), everything, state.local)
        hidden = self.head_in(q)
        total = state.x.new_zeros(len(state.x))
        known = state.x.new_zeros(*q.shape[:2], 0)
        for kind in range(3):
            mean, log_scale = state.local.conditional(kind, state.delta, state.kt)
            z = (state.delta[..., kind] - mean) * log_scale.exp()
            rows = Rows.narrow(layout) if kind == 2 else Rows.of(layout, range(kind + 1, n))
            line = rows.ranks
            parameters = self._line(hidden[:, line], kind, known[:, line])
            units = mean[:, line], log_scale[:, line]
            conditional = self._limited(rows, state.x, state.q[:, line], kind, units, parameters)
            unit = units[1] - rows.log_scale[:, kind].to(z.dtype)
            total = total + (conditional.log_density(z[:, line]) + unit).sum(1)
            if kind < 2:
                z = z * everything.has_line[:, kind].to(z.dtype)
                known = torch.cat([known, z[..., None].clamp(-6, 6)], -1)
        rotors = layout.rotor_ranks
        heights = self._circle(q[:, rotors], known[:, rotors], state.scan, state.kt)
        u = broad_positions(layout, state)
        return total + circular_log_density(u, heights).sum(1)

    def log_prob(self, layout: Layout, x: Tensor, temperature: Tensor) -> Tensor:
        """Log-density (B,) of x (B, N, 3) in Angstrom, atoms in the peptide's order, at temperatures (B,) in K.

        Equivalent hydrogens (and the methyl groups of valine and leucine) are exchanged where their names are on the
        wrong side; the density is that of the canonical naming. -inf beyond `layout.limits`: a mirror image, any wrong
        stereocentre, a bond torn.
        """
        state = CompleteState.of(layout, x, temperature, self.waves.dtype)
        value = self.log_density(layout, state).double() - state.log_volume
        return torch.where(within(Rows.of(layout, range(layout.atoms)), state.x, state.q), value, -torch.inf)

    def place(
        self,
        layout: Layout,
        state: State,
        h: Tensor,
        content: tuple[Tensor, Tensor],
        rows: Rows,
        noise: Tensor,
        local: Local,
        scans: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates (B, K, 3: steps of r and theta, phi) from noise (B, K, 4) in (0, 1), and their log-density.

        `scans` (B, R, CHANNELS, KNOTS) are those of the rotors among `rows`. Angles phi are relative to `centre`.
        """
        dtype = state.x.dtype
        q = self.queries(layout, state, h, content, rows, local)
        hidden = self.head_in(q)
        delta = state.x.new_zeros(*q.shape[:2], 3)
        known, log_q = q[..., :0], noise.new_zeros(len(noise), len(rows.ranks))
        for kind in range(3):
            mean, log_scale = local.conditional(kind, delta, state.kt)
            parameters = self._line(hidden, kind, known)
            here = rows.has_line[:, kind].to(dtype)
            so_far = delta * rows.scale.to(dtype) + rows.ideal.to(dtype)
            conditional = self._limited(rows, state.x, so_far, kind, (mean, log_scale), parameters)
            z, log_density = conditional.sample(noise[..., kind])
            value = mean + z * (-log_scale).exp()
            delta = torch.cat([delta[..., :kind], (value * here)[..., None], delta[..., kind + 1 :]], -1)
            unit = rows.log_scale[:, kind].to(dtype)
            log_q = log_q + (log_density + log_scale - unit) * here
            if kind < 2:
                known = torch.cat([known, (z * here).clamp(-6, 6)[..., None]], -1)
        phi = delta[..., 2].double() * rows.scale[:, 2]
        which = rows.broad_at
        if len(which):
            fold = rows.folds
            heights = self._circle(q[:, which], known[:, which], scans.to(dtype), state.kt).double()
            u = circular_quantile(noise[:, which, 2], heights)
            log_q = log_q.index_add(1, which, circular_log_density(u, heights).to(log_q.dtype))
            label = (noise[:, which, 3] * fold).floor().clamp(max=fold - 1)
            phi = phi.index_copy(1, which, (u + 2 * torch.pi * label) / fold)
        steps = delta[..., :2].double() * rows.scale[:, :2]
        return torch.cat([steps, phi[..., None]], -1), log_q.double()

    def behind_content(self) -> list[nn.Parameter]:
        """The parameters that :meth:`content` does not depend on: a third of all, for a fifth of the cost of a step."""
        before = {id(p) for module in (self.encoder, self.to_trunk, self.trunk) for p in module.parameters()}
        return [p for p in self.parameters() if id(p) not in before]

    def describe(self) -> dict:
        """What a checkpoint needs to rebuild the network."""
        return asdict(self.config)
