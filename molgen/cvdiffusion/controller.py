"""Controllers: networks f(r, x) for the score of the target after noise of variance r, in 1/Angstrom.

One interface, four networks: `PointController` for a single particle on a model surface; `PairController` for few
atoms, cheap, blind to reflections; `TrunkController`, the shared equivariant trunk, for many atoms, which tells left
from right where asked to; `InternalController` for the internal coordinates of a molecule whose bonds stay.

All are residuals of the score of a Gaussian of the target's spread, in units of 1/sqrt(r + width^2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from molgen.nn.radial import FourierTime
from molgen.nn.trunk import Trunk, TrunkConfig

KINDS = ("point", "pair", "trunk")
HARMONICS = (1, 2, 3, 4, 6)  # of a broad dihedral that the internal network sees
KIND_FEATURES = 16  # of an atom's class, for the trunk


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller is.

    Attributes:
        kind: "point", "pair", "trunk" or "internal".
        numbers: (N,) class of each atom: equal for atoms that the network may not tell apart (trunk).
        spread: variance of the target's coordinates, Angstrom^2. width: of its stiffest directions, Angstrom.
        least, most: standard deviation of the least and the most noise, Angstrom.
        hidden, depth: of the perceptrons. radial: Gaussians a distance.
        quadruples: atoms whose signed volumes the pair network sees, to tell left from right; none: it is blind
            to reflections.
        periods: of the coordinates, radians; 0 for those that are narrow (internal).
        scalars, vectors, layers: of the trunk. odd: parity-odd channels of the trunk; 0 is blind to reflections.
    """

    kind: str
    numbers: tuple[int, ...]
    spread: float = 1.0
    width: float = 0.05
    least: float = 0.02
    most: float = 6.0
    hidden: int = 192
    depth: int = 3
    radial: int = 16
    quadruples: tuple[tuple[int, ...], ...] = ()
    periods: tuple[float, ...] = ()
    scalars: int = 32
    vectors: int = 16
    layers: int = 3
    odd: int = 0


class Controller(nn.Module, ABC):
    """f(r (B,), x (B, M, c)) -> (B, M, c), without net force for more than one atom.

    Attributes:
        spread: variance of the target's coordinates, a number or (M, c).
    """

    spread: Tensor

    def __init__(self, config: ControllerConfig):
        super().__init__()
        self.config = config
        self.time = FourierTime(8)
        self.register_buffer("spread", torch.tensor(config.spread), persistent=False)
        low, high = 2 * torch.tensor([config.least, config.most]).log()
        self.log_range = (float(low), float(high))

    def describe(self) -> dict[str, Any]:
        """The configuration, as JSON can hold it."""
        listed = {name: list(getattr(self.config, name)) for name in ("numbers", "periods")}
        listed["quadruples"] = [list(q) for q in self.config.quadruples]
        return asdict(self.config) | listed

    def forward(self, r: Tensor, x: Tensor) -> Tensor:
        c = self.config
        low, high = self.log_range
        time = self.time((r.log() - low).clamp(min=0) / (high - low))
        r = r[:, None, None]
        plain = -x / (r + self.spread)
        return plain + self.correction(r, x, time) / (r + c.width**2).sqrt()

    @abstractmethod
    def correction(self, r: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """What the network adds (B, M, c), of order one. r is (B, 1, 1), time (B, F)."""


class PointController(Controller):
    """A perceptron on the coordinates."""

    def __init__(self, config: ControllerConfig):
        super().__init__(config)
        n = 3 * len(config.numbers)
        self.net = _perceptron(2 * n + self.time.features, config.hidden, config.depth, n)

    def correction(self, r: Tensor, x: Tensor, time: Tensor) -> Tensor:
        shrunk = x / (1 + r / self.config.spread).sqrt()
        force = self.net(torch.cat([shrunk.flatten(1), torch.tanh(shrunk).flatten(1), time], 1)).view_as(x)
        return force - force.mean(1, keepdim=True) if x.shape[1] > 1 else force


class PairController(Controller):
    """A perceptron on all pair distances that gives a force along each pair."""

    first: Tensor
    second: Tensor
    centres: Tensor
    corners: Tensor

    def __init__(self, config: ControllerConfig):
        super().__init__(config)
        first, second = torch.triu_indices(len(config.numbers), len(config.numbers), 1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        reach = 5.0 * config.spread**0.5
        self.register_buffer("centres", torch.linspace(0.0, reach, config.radial), persistent=False)
        self.pairs = len(first)
        corners = torch.tensor(config.quadruples, dtype=torch.long).reshape(-1, 4)
        self.register_buffer("corners", corners, persistent=False)
        inputs = self.pairs * (config.radial + 1) + 2 * len(corners) + self.time.features
        self.net = _perceptron(inputs, config.hidden, config.depth, self.pairs)

    def correction(self, r: Tensor, x: Tensor, time: Tensor) -> Tensor:
        apart = x[:, self.first] - x[:, self.second]
        distance = (apart.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        shrunk = distance / (1 + r / self.config.spread).sqrt()
        gaps = (shrunk - self.centres) / (self.centres[1] - self.centres[0])
        features = torch.cat([(-0.5 * gaps.square()).exp(), shrunk / self.centres[-1]], -1)
        parts = [features.flatten(1), time]
        if len(self.corners):
            at = x[:, self.corners] / (1 + r[..., None] / self.config.spread).sqrt()
            edges = at[:, :, 1:] - at[:, :, :1]
            volume = (edges[:, :, 0] * torch.linalg.cross(edges[:, :, 1], edges[:, :, 2])).sum(-1)
            parts += [torch.tanh(volume), torch.tanh(0.2 * volume)]
        force = self.net(torch.cat(parts, 1))[..., None] * apart / distance
        total = torch.zeros_like(x)
        return total.index_add(1, self.first, force).index_add(1, self.second, -force)


class TrunkController(Controller):
    """The shared trunk on one geometry."""

    def __init__(self, config: ControllerConfig):
        super().__init__(config)
        kinds = sorted(set(config.numbers))
        self.types = nn.Embedding(len(kinds), KIND_FEATURES)
        index = torch.tensor([kinds.index(z) for z in config.numbers])
        self.register_buffer("index", index, persistent=False)
        self.trunk = Trunk(
            TrunkConfig(
                scalars=config.scalars,
                vectors=config.vectors,
                odd=config.odd,
                pair=config.scalars,
                heads=4,
                layers=config.layers,
                node_inputs=KIND_FEATURES,
                pair_inputs=1,
                conditions=self.time.features,
                time=False,
            )  # fmt: skip
        )
        self.out = nn.Linear(config.vectors, 1, bias=False)
        if config.odd:  # the trunk's vectors are polar: only what is axial, taken for polar, tells left from right
            self.turn, self.gate = (
                nn.Linear(config.odd, config.vectors, bias=False),
                nn.Linear(config.scalars, config.odd),
            )
            self.out_axial = nn.Linear(config.odd + config.vectors, 1, bias=False)

    def correction(self, r: Tensor, x: Tensor, time: Tensor) -> Tensor:
        shrunk = x / (1 + r / self.config.spread).sqrt()
        nodes = self.types(self.index).expand(len(x), -1, -1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        exact = "donot_use_mm_for_euclid_dist"  # the default loses half the digits above 25 atoms
        far = torch.log1p(torch.cdist(shrunk, shrunk, compute_mode=exact))[..., None]
        s, v, odd = self.trunk(nodes, [shrunk], mask, pair_features=far, condition=time)
        force = self.out(v)[..., 0]
        if odd is not None:
            pseudo, axial = odd
            parts = [axial * self.gate(s)[..., None, :], v * torch.tanh(self.turn(pseudo))[..., None, :]]
            force = force + self.out_axial(torch.cat(parts, -1))[..., 0]
        return force - force.mean(1, keepdim=True)


class InternalController(Controller):
    """A perceptron on internal coordinates; it sees broad dihedrals as angles too."""

    broad: Tensor
    harmonics: Tensor

    def __init__(self, config: ControllerConfig):
        super().__init__(config)
        periods = torch.tensor(config.periods)
        self.spread = torch.where(periods > 0, (periods / 2) ** 2, config.width**2)[:, None]
        self.register_buffer("broad", torch.nonzero(periods > 0)[:, 0], persistent=False)
        self.register_buffer("harmonics", torch.tensor(HARMONICS, dtype=torch.float32), persistent=False)
        inputs = len(periods) + 2 * len(HARMONICS) * len(self.broad) + self.time.features
        self.net = _perceptron(inputs, config.hidden, config.depth, len(periods))

    def correction(self, r: Tensor, x: Tensor, time: Tensor) -> Tensor:
        angles = (x[:, self.broad] * self.harmonics).flatten(1)
        shrunk = x[..., 0] / (r[..., 0] + self.spread[:, 0]).sqrt()
        return self.net(torch.cat([shrunk, angles.sin(), angles.cos(), time], 1))[..., None]


def build_controller(config: ControllerConfig | dict[str, Any]) -> Controller:
    """The network of a configuration."""
    if isinstance(config, dict):
        quadruples = tuple(tuple(q) for q in config["quadruples"])
        lists = {name: tuple(config[name]) for name in ("numbers", "periods")}
        config = ControllerConfig(**{**config, **lists, "quadruples": quadruples})
    kinds = {"point": PointController, "pair": PairController, "trunk": TrunkController, "internal": InternalController}
    return kinds[config.kind](config)


def _perceptron(inputs: int, hidden: int, depth: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in [inputs] + [hidden] * (depth - 1):
        layers += [nn.Linear(width, hidden), nn.SiLU()]
    last = nn.Linear(hidden, outputs)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.zero_()
    return nn.Sequential(*layers, last)
