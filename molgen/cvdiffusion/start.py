"""Starting frames: a short simulation in each basin the user knows of, for the controller to begin with."""

from __future__ import annotations

import numpy as np

from molgen.cvdiffusion.walls import Wall, wall_energy
from molgen.errors import CalculatorError
from molgen.potentials.ase import PotentialCalculator
from molgen.potentials.base import Potential
from molgen.potentials.composite import BiasPotential, SumPotential
from molgen.rng import generator

MASS = 12.0  # amu, of every atom: masses leave the distribution alone, and equal ones allow the longest time step
STEP, FRICTION = 1.0, 0.02  # fs, 1/fs
EVERY, SETTLE = 4, 40  # steps between frames, frames before the first that counts
RELAX = 60  # steps of optimisation
EXPLODED = 50.0  # kT an atom above the start


def starting_frames(
    potential: Potential, walls: list[Wall], starts: np.ndarray, temperature: float, frames: int, seed: int
) -> np.ndarray:
    """Frames (S * (frames // S), N, 3) of Langevin dynamics from each of the relaxed `starts` (S, N, 3), Angstrom.

    Populations of the basins are those of the starts; the sampler's weights replace them.

    Raises:
        CalculatorError: a start has no energy, or its dynamics lost it.
    """
    from ase import Atoms, units
    from ase.calculators.calculator import CalculatorError as Failed
    from ase.md.langevin import Langevin
    from ase.optimize import FIRE

    total = SumPotential(potential, BiasPotential(lambda x: wall_energy(walls, x), potential.numbers))
    found = []
    for index, start in enumerate(starts):
        atoms = Atoms(potential.numbers, start)
        atoms.set_masses([MASS] * len(atoms))  # pyright: ignore[reportArgumentType]
        atoms.calc = PotentialCalculator(total)
        rng = generator(seed, index)
        try:
            FIRE(atoms, logfile=None).run(  # pyright: ignore[reportArgumentType]
                fmax=0.1, steps=RELAX
            )
            speed = (units.kB * temperature * MASS) ** 0.5
            atoms.set_momenta(speed * rng.standard_normal(atoms.positions.shape))
            dynamics = Langevin(
                atoms, STEP * units.fs, temperature_K=temperature, friction=FRICTION / units.fs, fixcm=False, rng=rng
            )
            relaxed = atoms.get_potential_energy()
            for frame in range(SETTLE + frames // len(starts)):
                dynamics.run(EVERY)
                if frame >= SETTLE:
                    found.append(atoms.get_positions())
            grown = atoms.get_potential_energy() - relaxed
        except Failed as error:
            raise CalculatorError(
                f"the calculator fails in the short simulation it begins with: {error}",
                where=f"starting structure {index}",
                remedy="relax the structure, or check charge and spin",
            ) from error
        if grown > EXPLODED * len(atoms) * units.kB * temperature:
            raise CalculatorError(
                f"the energy rose by {grown:.4g} eV in the short simulation it begins with",
                where=f"starting structure {index}",
                expected="a structure near a minimum",
                remedy="relax it with the same calculator first",
            )
    return np.stack(found)
