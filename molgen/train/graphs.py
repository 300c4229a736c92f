"""Forward and backward passes as CUDA graphs: a small network on a fast GPU otherwise waits for Python to launch it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], dict[str, Tensor]]


class GraphedNetwork:
    """`network` with both passes captured for each shape of its inputs, at their first use, and replayed afterwards.

    For losses that cannot be captured whole. The network reads tensors alone and does not wait for the GPU; its inputs
    need no gradient. One forward pass is followed by its backward pass before the next: graphs share their memory.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Hashable, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the network returns."""
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        if key not in self._captured:
            one = _Forwarding(self.network).train(self.network.training)  # capturing replaces its `forward`
            static = tuple(x.clone() for x in inputs)
            self._captured[key] = torch.cuda.make_graphed_callables(  # pyright: ignore[reportArgumentType]
                one, static, allow_unused_input=True, pool=self._pool
            )
        return self._captured[key](*inputs)


class _Forwarding(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network(*inputs)


@dataclass
class _Lane:
    """A stream that replays its own graphs one after the other, beside other lanes; `gradients` add up in it."""

    stream: torch.cuda.Stream
    pool: Any
    gradients: list[Tensor]


class CapturedGradients:
    """Gradients of losses that each read one index tensor, captured once a key and replayed.

    The loss of a key must not read anything else that changes, nor wait for the GPU (no `.item()`, no `nonzero`); what
    it looks up and keeps is made by a first pass outside the graph. Gradients add up in `.grad`, as they do without.

    Args:
        scale: of the losses whose gradients are taken.
        lanes: graphs that may run at the same time. One of a small network leaves most of a GPU idle.
    """

    def __init__(self, model: nn.Module, scale: float = 1.0, lanes: int = 1):
        self.parameters, self.scale = [p for p in model.parameters() if p.requires_grad], scale
        self._lanes = [
            _Lane(torch.cuda.Stream(), torch.cuda.graph_pool_handle(), [torch.zeros_like(p) for p in self.parameters])
            for _ in range(lanes)
        ]
        self._captured: dict[Hashable, tuple[_Lane, torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]] = {}

    def __call__(self, jobs: Sequence[tuple[Hashable, Loss, Tensor]]) -> list[dict[str, Tensor]]:
        """Add the gradients of `scale * loss(index)["loss"]` of all jobs (key, loss, index); their losses, detached.

        The index of a key always has one length.
        """
        for key, loss, index in jobs:
            if key not in self._captured:
                lane = self._lanes[len(self._captured) % len(self._lanes)]
                self._captured[key] = (lane, *self._capture(lane, loss, index.to(self.parameters[0].device)))
        here, found = torch.cuda.current_stream(), []
        for lane in self._lanes:
            lane.stream.wait_stream(here)
        for key, _, index in jobs:
            lane, graph, static, losses = self._captured[key]
            with torch.cuda.stream(lane.stream):
                static.copy_(index)
                graph.replay()
                found.append({name: value.clone() for name, value in losses.items()})
        for lane in self._lanes:
            here.wait_stream(lane.stream)
        for lane in self._lanes:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            torch._foreach_add_([p.grad for p in self.parameters], lane.gradients)  # pyright: ignore
            torch._foreach_zero_(lane.gradients)  # pyright: ignore[reportPrivateImportUsage]
        return found

    def _capture(
        self, lane: _Lane, loss: Loss, index: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            loss(index)
        if not self._captured:
            self._warm_up(loss, index)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=lane.pool, stream=lane.stream):
            losses = loss(index)
            for total, new in zip(lane.gradients, self._gradients(losses), strict=True):
                if new is not None:
                    total.add_(new)
        return graph, index, {name: value.detach() for name, value in losses.items()}

    def _gradients(self, losses: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(self.scale * losses["loss"], self.parameters, allow_unused=True)

    def _warm_up(self, loss: Loss, index: Tensor) -> None:
        """Let libraries set themselves up, on a stream of its own as CUDA asks."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._gradients(loss(index))
        torch.cuda.current_stream().wait_stream(stream)
