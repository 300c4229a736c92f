"""Forward and backward passes as CUDA graphs: a small network on a fast GPU otherwise waits for Python to launch it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

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


class CapturedGradients:
    """Gradients of losses that each read one index tensor, captured once a key and replayed.

    The loss of a key must not read anything else that changes, nor wait for the GPU (no `.item()`, no `nonzero`); what
    it looks up and keeps is made by a first pass outside the graph. Gradients add up in `.grad`, as they do without.
    """

    def __init__(self, model: nn.Module, scale: float = 1.0):
        self.parameters, self.scale = [p for p in model.parameters() if p.requires_grad], scale
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]] = {}

    def __call__(self, key: Hashable, loss: Loss, index: Tensor) -> dict[str, Tensor]:
        """Add the gradients of `scale * loss(index)["loss"]`; returns the losses, detached.

        Args:
            index: of one length for a key.
        """
        if key not in self._captured:
            self._captured[key] = self._capture(loss, index.to(self.parameters[0].device))
        graph, static, losses = self._captured[key]
        static.copy_(index)
        graph.replay()
        return {name: value.clone() for name, value in losses.items()}

    def _capture(self, loss: Loss, index: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, dict[str, Tensor]]:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with torch.no_grad():
            loss(index)
        if not self._captured:
            self._warm_up(loss, index)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            losses = loss(index)
            (self.scale * losses["loss"]).backward()
        return graph, index, {name: value.detach() for name, value in losses.items()}

    def _warm_up(self, loss: Loss, index: Tensor) -> None:
        """Let libraries set themselves up, on a stream of its own as CUDA asks; the gradients stay as they were."""
        before = [p.grad.clone() for p in self.parameters if p.grad is not None]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                loss(index)["loss"].backward()
        torch.cuda.current_stream().wait_stream(stream)
        for parameter, gradient in zip(self.parameters, before, strict=True):
            if parameter.grad is not None:
                parameter.grad.copy_(gradient)
