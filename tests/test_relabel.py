"""Saddles that join reactant and product with equivalent atoms exchanged."""

import numpy as np
import pytest

from molgen import find_ts
from molgen.data.reactions import Reaction
from molgen.geometry.align import rmsd_of
from molgen.geometry.labelled import isomorphisms, reaction_graph
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import normal_modes, refine
from molgen.saddle.relabel import relabelling
from molgen.saddle.verify import settle, verify
from molgen.workflows.ts_guesses import Guess
from molgen.workflows.ts_search import TSSearch

LINE = np.array([[0.0, 0.0, 0.0], [0.74, 0.0, 0.0], [3.0, 0.0, 0.0]])  # H0-H1 beside H2


@pytest.fixture(scope="module")
def hydration():
    """Numbers, saddle, reactant and product of CH2O + H2O -> CH2(OH)2, and the two hydrogens of the water."""
    path = find_ts(smiles="C=O.O>>OCO", samples=1).best
    water = [k for k in range(7) if path.atoms.numbers[k] == 1 and _bonded(path.path_positions[0], k, (1, 2))]
    assert len(water) == 2
    return path.atoms.numbers, path.atoms.positions, path.path_positions[0], path.path_positions[-1], water


def _bonded(x: np.ndarray, k: int, oxygens: tuple[int, ...]) -> bool:
    return min(np.linalg.norm(x[k] - x[oxygen]) for oxygen in oxygens) < 1.2


def exchanged(x: np.ndarray, i: int, j: int) -> np.ndarray:
    order = np.arange(len(x))
    order[[i, j]] = j, i
    return x[order]


def test_the_other_hydrogen_of_a_water_is_the_same_reaction(hydration):
    numbers, saddle, reactant, product, water = hydration
    found = verify(XtbPotential(numbers), saddle, reactant, exchanged(product, *water))
    assert found.verdict == "intended", found.reason
    np.testing.assert_array_equal(np.flatnonzero(found.order != np.arange(7)), water)
    np.testing.assert_allclose(found.path_positions[found.ts_index], saddle[found.order])
    assert verify(XtbPotential(numbers), saddle, reactant, product).order is None


def test_everything_known_of_the_saddle_is_relabelled_alike(hydration):
    numbers, saddle, reactant, product, water = hydration
    potential = XtbPotential(numbers)
    refined = refine(potential, saddle, reactant=reactant, product=product)
    settled, checked = settle(potential, refined, reactant, exchanged(product, *water))
    assert rmsd_of(settled.positions, exchanged(refined.positions, *water)) < 1e-9
    fresh = normal_modes(potential, settled.positions)
    np.testing.assert_allclose(checked.modes.frequencies_cm, fresh.frequencies_cm, atol=10)
    assert abs((checked.modes.vectors[0] * fresh.vectors[0]).sum()) > 0.999
    np.testing.assert_allclose(checked.modes.hessian, fresh.hessian, atol=0.5)
    np.testing.assert_allclose(
        settled.hessian, refined.relabelled(checked.order).hessian
    )  # and the energy, a number, is the same
    assert settled.energy == refined.energy


def test_the_guess_of_a_relabelled_saddle_is_relabelled_too(hydration):
    """The correction to the level of the training set reads both."""
    numbers, saddle, reactant, product, water = hydration
    ends = [np.zeros(7, int)] * 2
    reaction = Reaction(numbers, reactant, exchanged(product, *water), *ends, 0, 0)
    search = TSSearch(reaction, XtbPotential(numbers), "quick", lambda *stage: None)
    search.guesses.append(Guess(saddle + 0.01, "TS-GEN", 0, (reactant, product), None))
    assert search.advance() and search.succeeded()
    candidate = search.candidates[0]
    assert rmsd_of(search.guesses[0].positions, candidate.atoms.positions) < 0.1
    assert candidate.modes is not None and candidate.ts_index is not None and candidate.path_positions is not None
    step = candidate.path_positions[candidate.ts_index + 1] - candidate.atoms.positions
    along = abs((candidate.modes.vectors[0] * step).sum()) / np.linalg.norm(step)
    assert along > 0.9, "the modes are in the order of the atoms"


def test_another_reaction_is_not_relabelled(hydration):
    numbers, _, reactant, product, _ = hydration
    assert relabelling(numbers, [reactant, reactant], reactant, product) is None
    assert relabelling(numbers, [product, product], reactant, product) is None
    np.testing.assert_array_equal(relabelling(numbers, [product, reactant], reactant, product), np.arange(7))


def test_of_several_labellings_the_nearest_is_taken():
    numbers, after = [1, 1, 1], LINE[[2, 1, 0]]  # H1 to H2
    wells = [x[[1, 0, 2]] for x in (LINE, after)]  # H0 does it
    np.testing.assert_array_equal(relabelling(numbers, wells, LINE, after), [1, 0, 2])


def test_of_several_labellings_the_given_stereoisomer_is_taken():
    """The hydrogen that joins the oxygen is the other one, and the carbon keeps its hand."""
    numbers = [6, 9, 17, 8, 1, 1]
    centre = np.array([[0, 0, 0], [0.8, 0.8, 0.8], [-1.0, -1.0, 1.0], [-0.8, 0.8, -0.8], [0.63, -0.63, -0.63]])
    before = np.vstack([centre, [[6.0, 0.0, 0.0]]])
    after = before.copy()
    after[5] = before[3] + [-0.55, 0.55, -0.55]  # on the oxygen
    wells = [exchanged(x, 4, 5) for x in (before, after)]
    np.testing.assert_array_equal(relabelling(numbers, wells, before, after), [0, 1, 2, 3, 5, 4])


def test_isomorphisms_tell_what_becomes_of_bonds():
    left, right = np.zeros((2, 3, 3), dtype=bool)
    left[0, 1] = left[1, 0] = right[1, 2] = right[2, 1] = True  # H1 goes from H0 to H2
    there, back = reaction_graph([1, 1, 1], left, right), reaction_graph([1, 1, 1], right, left)
    assert isomorphisms(there, there) == ((0, 1, 2),) and isomorphisms(there, back) == ((2, 1, 0),)
    kept = reaction_graph([1, 1, 1], left | right, left | right)
    assert sorted(isomorphisms(kept, kept)) == [(0, 1, 2), (2, 1, 0)]
    assert isomorphisms(there, kept) == () == isomorphisms(kept, reaction_graph([1, 1, 1], left, left))
    assert isomorphisms(there, reaction_graph([1, 1, 9], left, right)) == ()
