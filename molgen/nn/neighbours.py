"""Messages from listed neighbours, summed without ever holding them all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SumOfSilu(torch.autograd.Function):
    """sum_j SiLU(static[k, j] + own[b, near[k, j]]), one neighbour slot at a time.

    A tensor (B, K, J, C) of all messages would not fit the cache: written out and read back by every elementwise
    operation, it took half of the training time. The backward pass computes the messages again; it cannot itself be
    differentiated.
    """

    @staticmethod
    def forward(ctx: Any, static: Tensor, own: Tensor, near: Tensor, slots: list[Tensor]) -> Tensor:
        """(B, K, C) from static (K, J, C) and own (B, N, C).

        Args:
            near: (K, J) indices into N. slots: for each j, the k that have a j-th neighbour.
        """
        total = own.new_zeros(len(own), len(near), own.shape[2])
        for j, k in enumerate(slots):
            total.index_add_(1, k, F.silu(own[:, near[k, j]].add_(static[k, j]), inplace=True))
        ctx.save_for_backward(static, own, near)
        ctx.slots = slots
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of static and own."""
        static, own, near = ctx.saved_tensors
        to_static, to_own = torch.zeros_like(static), torch.zeros_like(own)
        for j, k in enumerate(ctx.slots):
            messages = own[:, near[k, j]].add_(static[k, j])
            share = torch.ops.aten.silu_backward(gradients[0][:, k], messages)
            to_static[k, j] = share.sum(0)
            to_own.index_add_(1, near[k, j], share)
        return to_static, to_own, None, None
