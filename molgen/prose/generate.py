"""Conformations from the flow: atom by atom, or blocks of atoms at once by Gauss-Seidel-Jacobi iteration.

The flow maps uniform noise to a conformation one atom after the other. Given a guess of a whole block, every atom of
it can be placed at once from the guess; repeating that reaches the sequential result exactly, at the latest after as
many rounds as the block has atoms (Song et al., ICML 2021; GS-Jacobi, arXiv 2505.12849).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from torch import Tensor

from molgen.errors import InputError
from molgen.geometry.internal import log_volume, place_rank
from molgen.nn.trunk import TrunkCache
from molgen.prose.layout import Layout
from molgen.prose.limits import within
from molgen.prose.model import ProseFlow
from molgen.prose.physics import CHANNELS, KNOTS, local_quadratic, scan
from molgen.prose.rows import Rows
from molgen.prose.state import Local, State, coordinates, thermal
from molgen.rng import torch_generator

BATCH, GPU_BATCH = 512, 4096
_SAME = 1e-9  # Angstrom: two rounds agree


@dataclass(frozen=True, eq=False)
class Sampled:
    """Conformations x (B, N, 3) in Angstrom, in the peptide's atom order, log-density (B,); rounds of iteration."""

    x: Tensor
    log_q: Tensor
    rounds: int


def propose(
    flow: ProseFlow,
    layout: Layout,
    n: int,
    temperature: float,
    seed: int,
    *,
    first: int = 0,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw samples first, ..., first + n - 1 of `seed`; sample i is the same whatever else is drawn with it.

    On a CPU as many batches at once as torch has threads (`torch.set_num_threads`, OMP_NUM_THREADS).

    Args:
        temperature: K. progress: called with the number of samples finished since its last call.

    Returns:
        positions (n, N, 3) in Angstrom and log-densities (n,), see :meth:`ProseFlow.log_prob`.

    Raises:
        InputError: n < 1.
    """
    if n < 1:
        raise InputError(f"{n} samples asked", where="-n", expected="at least 1")
    on_cpu = flow.waves.device.type == "cpu"
    batch_size = batch_size or (BATCH if on_cpu else GPU_BATCH)
    batches = [range(k, min(k + batch_size, first + n)) for k in range(first, first + n, batch_size)]

    def one(indices: range) -> tuple[np.ndarray, np.ndarray]:
        torch.set_num_threads(1)
        noise = torch.stack([uniform(seed, i, layout.noise) for i in indices])
        kelvins = torch.full((len(indices),), float(temperature), dtype=torch.float64)
        out = sample(flow, layout, noise, kelvins, stop=stop)
        return out.x.cpu().numpy(), out.log_q.cpu().numpy()

    # batches side by side, each on one thread: two threads within one operation gain little, and lose a factor of three
    # on a machine that has anything else to do, since they wait for each other
    threads, parts, stop = torch.get_num_threads(), [], Event()
    with ThreadPoolExecutor(threads if on_cpu else 1) as pool:
        try:
            for part in pool.map(one, batches):
                parts.append(part)
                if progress is not None:
                    progress(len(part[1]))
        finally:
            stop.set()  # after Ctrl-C: shutdown waits for the batches under way
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
    xs, log_qs = zip(*parts, strict=True)
    return np.concatenate(xs), np.concatenate(log_qs)


def uniform(seed: int, index: int, count: int) -> Tensor:
    """(count,) uniform numbers in (0, 1), float64, of sample `index`."""
    return torch.rand(count, generator=torch_generator(seed, index), dtype=torch.float64).clamp(1e-15, 1 - 1e-15)


@torch.no_grad()
def sample(
    flow: ProseFlow, layout: Layout, noise: Tensor, temperature: Tensor, block: int = 1, stop: Event | None = None
) -> Sampled:
    """Map noise to conformations.

    Args:
        noise: (B, layout.noise) in (0, 1). temperature: (B,) K.
        block: atoms placed at once; 1 is sequential, N is pure Jacobi iteration. The result is the same.
        stop: looked at after every atom.

    Raises:
        CancelledError: `stop` was set.
    """
    b, n = len(noise), layout.atoms
    dtype, device = flow.waves.dtype, flow.waves.device
    layout, noise, temperature = layout.to(device), noise.double().view(b, n, 4).to(device), temperature.to(device)
    kt, condition = thermal(temperature, dtype)
    x = noise.new_zeros(b, n, 3)
    q, log_q, rounds = torch.zeros_like(x), noise.new_zeros(b, n), 0
    h, cache, content = flow.encode(layout), TrunkCache(), None
    for begin in range(0, n, block):
        if stop is not None and stop.is_set():
            raise CancelledError
        end = min(begin + block, n)
        rows = Rows.of(layout, range(begin, end))
        ranks = rows.ranks
        if block > 1:  # the first guess: everything ideal, every torsion trans
            guess = x.new_zeros(b, end - begin, 3)
            guess[..., 2] = torch.where(layout.broad[ranks], math.pi, 0.0)
            _move(layout, x, q, ranks, guess)
        for attempt in range(end - begin + 1):
            delta, own = coordinates(layout, q.to(dtype))
            state = State(x.to(dtype), q.to(dtype), delta, own, kt, condition)
            if block > 1:
                content = flow.content(layout, state, h, end)
            elif content is None or content[0].shape[1] < int((layout.heavy < begin).sum()):
                content = flow.content(layout, state, h, begin, cache)
            local, scans = _hints(layout, state, rows)
            steps, part = flow.place(layout, state, h, content, rows, noise[:, ranks], local, scans)
            before = x[:, ranks].clone()
            _move(layout, x, q, ranks, steps)
            log_q[:, ranks] = part
            rounds += 1
            if block == 1 or (attempt and float((x[:, ranks] - before).abs().max()) < _SAME):
                break
    total = log_q.sum(1) - log_volume(layout.z, q, x)
    # no conformation, or none that log_prob knows: a ring that cannot close any more
    total = torch.where(within(Rows.of(layout, range(n)), x, q) & ~total.isnan(), total, math.inf)
    return Sampled(x[:, torch.from_numpy(layout.z.rank)], total, rounds)


def _hints(layout: Layout, state: State, rows: Rows) -> tuple[Local, Tensor]:
    """The force field's view of `rows`: local quadratics of all, scans of the rotors."""
    narrow = rows.narrow_at
    free = Local.free(state.x, len(rows.ranks))
    if len(narrow):
        some = Local.of(*local_quadratic(layout, state.x, rows.ranks[narrow]))
        free = Local(
            free.slopes.index_copy(1, narrow, some.slopes),
            free.precisions.index_copy(1, narrow, some.precisions),
            free.coupling.index_copy(1, narrow, some.coupling),
        )
    scans = [scan(layout, layout.rotors[k], state.x) for k in rows.rotors.tolist()]
    return free, torch.stack(scans, 1) if scans else state.x.new_zeros(len(state.x), 0, CHANNELS, KNOTS)


def _move(layout: Layout, x: Tensor, q: Tensor, ranks: Tensor, steps: Tensor) -> None:
    """Write the coordinates that `steps` (B, K, 3) mean into x and q."""
    for k, i in enumerate(ranks.tolist()):
        r, second, phi = layout.r0[i] + steps[:, k, 0], layout.theta0[i] + steps[:, k, 1], steps[:, k, 2]
        q[:, i] = torch.stack([r, second, phi], -1)
        q[:, i, i:] = 0  # what the first three atoms lack
        if i == 1:
            x[:, 1, 2] = q[:, 1, 0]
        elif i > 1:
            x[:, i] = place_rank(layout.z, i, [x[:, int(index[i])] for index in layout.z.index], q[:, i])
