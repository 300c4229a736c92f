"""Samples of a batch evaluated in worker processes; a worker that dies takes only its sample with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from molgen.pool import Died, WorkerPool
from molgen.potentials.base import Potential


class ParallelPotential(Potential):
    """Evaluates the samples of a batch in `workers` processes; results in the order of the samples.

    Args:
        factory: picklable, makes the potential in each worker: `functools.partial(XtbPotential, numbers)`.
        workers: processes; by default one a core this process may use. Each runs one thread of OpenMP and of OpenMM's
            CPU platform unless OMP_NUM_THREADS and OPENMM_CPU_THREADS say otherwise.

    Workers start at the first evaluation and live until `close()` or the end of a `with` block. As with all spawned
    processes, a script that uses this needs `if __name__ == "__main__":`.
    """

    def __init__(self, factory: Callable[[], Potential], workers: int | None = None):
        self._pool = WorkerPool(partial(_Evaluation, factory), workers, type(self).__name__)
        molecule = factory()
        super().__init__(molecule.numbers, molecule.charge, molecule.spin)
        self.factory, self.workers = factory, self._pool.workers

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """End the workers. A later evaluation starts new ones."""
        self._pool.close()

    def _evaluate(self, positions, forces):
        energy = np.full(len(positions), np.nan)
        force = np.full(positions.shape, np.nan) if forces else None
        for (sample, *_), answer in self._pool.run((k, x, forces) for k, x in enumerate(positions)):
            if isinstance(answer, Died):
                self.failures[sample] = answer.reason
                continue
            energy[sample], given, reason = answer
            if reason:
                self.failures[sample] = reason
            if force is not None:
                force[sample] = given
        return energy, force


class _Evaluation:
    """A worker's job: energy, forces and the reason of a failure of one sample."""

    def __init__(self, factory: Callable[[], Potential]):
        self.potential = factory()

    def __call__(self, sample: int, positions: np.ndarray, forces: bool):
        if forces:
            energy, force = self.potential.energy_and_forces(positions[None])
            answer = energy[0], force[0]
        else:
            answer = self.potential.energy(positions[None])[0], None
        return (*answer, self.potential.failures.get(0))
