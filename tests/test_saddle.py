"""Saddle search and verification on surfaces whose stationary points are known, and on HCN -> HNC with GFN2-xTB."""

import numpy as np
import pytest
from ase.build import molecule

from molgen.errors import CalculatorError, InputError
from molgen.geometry.bonds import bonding_changes, bonding_differences
from molgen.io import load_reaction
from molgen.potentials.analytic import MuellerBrown
from molgen.potentials.base import Potential
from molgen.potentials.xtb import XtbPotential
from molgen.saddle import normal_modes, reaction_direction, refine, verify
from molgen.saddle.descent import _quadratic_descent, irc, relax
from molgen.saddle.judge import judge_wells
from molgen.saddle.optimize import bfgs_update, bofill_update, image_step, stationary_point
from molgen.saddle.restrain import bisected, half_made
from molgen.smiles import embed_molecule

NUMBERS = np.array([1, 6, 7])
HCN = np.array([[0, 0, -1.07], [0, 0, 0], [0, 0, 1.15]])
HNC = np.array([[0, 0, 2.15], [0, 0, 0], [0, 0, 1.17]])


class Scripted(Potential):
    """A potential that fails (NaN) at the calls numbered in `fails`, or at all from `after` on."""

    def __init__(self, inner, fails=(), after=10**9):
        super().__init__(inner.numbers)
        self.inner, self.fails, self.after = inner, set(fails), after

    def _evaluate(self, positions, forces):
        energy, force = self.inner.energy_and_forces(positions)
        if self.calls in self.fails or self.calls > self.after:
            energy, force = energy * np.nan, force * np.nan
        return energy, force


@pytest.fixture(scope="module")
def saddle():
    """The refined transition state of HCN -> HNC, from a guess some 0.2 A away and turned at random."""
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    guess = np.array([[1.2, 0, 0.45], [0, 0, 0], [0, 0, 1.2]]) @ rotation.T + rng.normal(scale=0.05, size=(3, 3))
    return refine(XtbPotential(NUMBERS), guess, reactant=HCN, product=HNC)


def test_bonds_that_change_are_held_half_made_while_the_rest_relaxes():
    """From either side of HCN -> HNC the hydrogen comes to lie between C and N, from where the saddle is near."""
    potential = XtbPotential(NUMBERS)
    for side in (HCN, HNC):
        bent = side + [[0.1, 0, 0], [0, 0, 0], [0, 0, 0]]
        x = half_made(potential, bent, HCN, HNC)
        h_c, h_n = np.linalg.norm(x[0] - x[1]), np.linalg.norm(x[0] - x[2])
        assert h_c == pytest.approx(1.34, abs=0.1) and h_n == pytest.approx(1.28, abs=0.1)
        found = refine(potential, x, reactant=HCN, product=HNC)
        assert found.converged and verify(potential, found.positions, HCN, HNC).verdict == "intended"


def test_a_chain_is_folded_without_tearing_it():
    """The ends of a stretched allyl vinyl ether are drawn together to what a Claisen rearrangement wants."""
    smiles = "C=COCC=CCCC>>O=CCC(CCC)C=C"
    reaction, _ = load_reaction(smiles=smiles)
    chain = embed_molecule(smiles.split(">>")[0], "chain").conformers
    stretched = max(chain, key=lambda x: np.linalg.norm(x[0] - x[5]))
    x = half_made(XtbPotential(reaction.numbers), stretched, reaction.reactant, reaction.product)
    reacting = bonding_changes(reaction.numbers, reaction.reactant, reaction.product)
    changed = bonding_changes(reaction.numbers, reaction.reactant, x)
    assert {*changed.broken, *changed.formed} <= {*reacting.broken, *reacting.formed}


def test_bonds_are_held_where_reactant_and_product_part():
    """HCN falls back to either side from a sixteenth of the way before and after."""
    potential = XtbPotential(NUMBERS)
    x = bisected(potential, HCN + [[0.1, 0, 0], [0, 0, 0], [0, 0, 0]], HCN, HNC)
    found = refine(potential, x, reactant=HCN, product=HNC)
    assert found.converged and np.linalg.norm(found.positions - x, axis=1).max() < 0.3
    assert verify(potential, found.positions, HCN, HNC).verdict == "intended"


@pytest.mark.parametrize("held", [half_made, bisected])
def test_without_a_bond_that_changes_nothing_is_held(held):
    potential = XtbPotential(NUMBERS)
    assert np.array_equal(held(potential, HCN, HCN, HCN + 0.01), HCN) and potential.calls == 0
    with pytest.raises(CalculatorError):
        held(Scripted(potential, after=2), HCN, HCN, HNC)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("offset", [(0.05, -0.04, 0.1), (-0.06, 0.05, -0.2)])
def test_finds_the_saddles_of_the_mueller_brown_surface(index, offset):
    potential = MuellerBrown()
    known = np.array([*MuellerBrown.SADDLES[index], 0.0])
    start = (known + offset)[None]
    hessian = np.diag([-1.0, 1.0, 1.0])  # wrong on purpose: the updates have to find the mode
    found = stationary_point(
        potential, start, hessian, order=1, fmax=1e-4, max_calls=60, trust=0.05, max_trust=0.1, free=False
    )
    assert found.converged
    assert found.positions[0] == pytest.approx(known, abs=1e-3)
    assert np.linalg.eigvalsh(found.hessian)[0] < 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_finds_the_minima_of_the_mueller_brown_surface(index):
    known = np.array([*MuellerBrown.MINIMA[index], 0.0])
    start = (known + [0.08, -0.05, 0.2])[None]
    found = stationary_point(MuellerBrown(), start, np.eye(3), order=0, fmax=1e-4, max_calls=60, trust=0.1, free=False)
    assert found.converged
    assert found.positions[0] == pytest.approx(known, abs=1e-3)
    assert (np.diff([energy for energy, _ in found.path]) < 1e-4).all()


def test_image_step_is_newtons_inside_and_on_the_sphere_outside():
    values, slopes = np.array([-2.0, 1.0, 4.0]), np.array([0.1, -0.1, 0.2])
    assert image_step(values, slopes, 0, 10.0) == pytest.approx(-slopes / values)
    step = image_step(values, slopes, 0, 0.03)
    assert np.linalg.norm(step) == pytest.approx(0.03, rel=1e-6)
    assert step[0] > 0 and step[1] > 0 and step[2] < 0  # up along the first mode, down along the others
    down = image_step(values, slopes, None, 0.5)
    assert np.linalg.norm(down) <= 0.5 + 1e-9 and slopes @ down < 0


@pytest.mark.parametrize("update", [bfgs_update, bofill_update])
def test_updates_fulfil_the_secant_condition(update):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 6))
    true, hessian = a @ a.T + np.eye(6), np.eye(6)
    step = rng.normal(size=6)
    new = update(hessian, step, true @ step)
    assert new @ step == pytest.approx(true @ step)
    assert new == pytest.approx(new.T)


def test_finds_hcn_to_hnc(saddle):
    assert saddle.converged and saddle.fmax < 0.02
    h, c, n = saddle.positions
    # GFN2-xTB: H bridges C and N
    assert 1.1 < np.linalg.norm(h - c) < 1.35 and 1.2 < np.linalg.norm(h - n) < 1.6
    assert saddle.gradient_calls <= 20


def test_direction_of_reaction_is_invariant_and_reverses(saddle):
    x = saddle.positions
    forward = reaction_direction(NUMBERS, x, HCN, HNC)
    assert forward == pytest.approx(-reaction_direction(NUMBERS, x, HNC, HCN), abs=1e-8)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    assert reaction_direction(NUMBERS, x @ rotation.T, HCN, HNC) == pytest.approx(forward @ rotation.T, abs=1e-6)
    true = normal_modes(XtbPotential(NUMBERS), x).vectors[0]
    assert abs((forward * true).sum()) > 0.6
    # it moves H from C to N
    ahead = x + 0.1 * forward
    assert np.linalg.norm(ahead[0] - ahead[2]) < np.linalg.norm(x[0] - x[2])


def test_one_call_is_one_call():
    found = refine(XtbPotential(NUMBERS), HCN, reactant=HCN, product=HNC, max_calls=1)
    assert found.gradient_calls == 1 and not found.converged and np.isfinite(found.energy)


@pytest.mark.parametrize("method", ["quick", "irc"])
def test_hcn_to_hnc_is_intended_both_ways(saddle, method):
    potential = XtbPotential(NUMBERS)
    found = verify(potential, saddle.positions, HCN, HNC, method=method)
    assert found.verdict == "intended", found.reason
    assert found.gradient_calls == potential.calls
    assert found.imaginary_frequency_cm < -500
    assert (found.modes.frequencies_cm[1:] > 0).all()
    top = found.ts_index
    assert (np.diff(found.path_energies[: top + 1]) > -1e-4).all()
    assert (np.diff(found.path_energies[top:]) < 1e-4).all()
    assert bonding_differences(NUMBERS, found.path_positions[0], HCN) == 0
    assert bonding_differences(NUMBERS, found.path_positions[-1], HNC) == 0
    forward, reverse = found.barriers
    wells = [relax(potential, x, fmax=0.01, max_calls=100).energy for x in (HCN, HNC)]
    assert forward == pytest.approx(saddle.energy - wells[0], abs=0.01)
    assert reverse == pytest.approx(saddle.energy - wells[1], abs=0.01)

    backward = verify(potential, saddle.positions, HNC, HCN, method=method)
    assert backward.verdict == "intended"
    assert backward.barriers == pytest.approx((reverse, forward), abs=0.005)


def test_wrong_ends_are_half_or_unintended(saddle):
    potential = XtbPotential(NUMBERS)
    apart = np.array([[0, 0, -9.0], [0, 0, 0], [0, 0, 1.17]])  # H + CN
    far = np.array([[0, 0, -9.0], [0, 0, 0], [0, 0, 9.0]])  # H + C + N
    half = verify(potential, saddle.positions, HCN, apart)
    assert half.verdict == "half"
    assert bonding_differences(NUMBERS, half.path_positions[0], HCN) == 0
    assert verify(potential, saddle.positions, far, apart).verdict == "unintended"


def test_a_minimum_is_not_a_saddle():
    potential = XtbPotential(NUMBERS)
    well = relax(potential, HCN, fmax=0.005, max_calls=50).positions
    found = verify(potential, well, HCN, HNC)
    assert found.verdict == "not_a_saddle"
    assert "no imaginary mode" in found.reason
    assert found.path_positions is None and found.barriers is None


def test_a_second_order_saddle_is_not_a_saddle():
    # planar-linear water: both bends are imaginary
    numbers = np.array([1, 8, 1])
    potential = XtbPotential(numbers)
    x = np.array([[0, 0, -0.94], [0, 0, 0], [0, 0, 0.94]])
    found = verify(potential, x, x, x + [[0, 0, -5], [0, 0, 0], [0, 0, 0]])
    assert found.verdict == "not_a_saddle"
    assert "2 imaginary modes" in found.reason


def test_a_well_between_both_ends_is_the_nearer_one():
    """A bond of 1.8 A is neither clearly broken beside 1.6 A nor clearly made beside 2.0 A."""

    def ethane(length):
        x = molecule("C2H6").positions
        x[x[:, 2] > 0, 2] += length - np.linalg.norm(x[0] - x[1])
        return x

    potential, ends = XtbPotential(molecule("C2H6").numbers), [ethane(1.6), ethane(2.0)]

    def verdict(*lengths):
        found = judge_wells(potential, [ethane(length) for length in lengths], [0.1, 0.1], *ends)
        return found.verdict, found.reason

    assert verdict(1.78, 1.82)[0] == "intended" and verdict(2.0, 1.78)[0] == "intended"
    assert verdict(1.78, 1.78) == ("half", "one well is the reactant, the other the reactant too")
    assert verdict(1.82, 2.0) == ("half", "one well is the product, the other the product too")


def test_direction_of_a_conformer_does_not_depend_on_where_another_molecule_is():
    numbers, anti = [1, 8, 8, 1], np.array([[0.9, 0.9, 0], [0, 0.7, 0], [0, -0.7, 0], [-0.9, -0.9, 0]])
    syn, argon = anti * [[1, 1, 1]] * 3 + [[-1.8, 0, 0]], np.array([[0.0, 0.0, 6.0]])
    alone = reaction_direction(numbers, anti, anti, syn)
    for far in (argon, argon + 5, -argon):
        both = [np.vstack([anti, argon]), np.vstack([anti, argon]), np.vstack([syn, far])]
        found = reaction_direction([*numbers, 18], *both)
        assert np.allclose(found[:4], alone, atol=1e-6) and np.allclose(found[4], 0, atol=1e-9)


def test_conformers_are_told_apart_by_shape():
    # ammonia inverts: R and P have the same bonds and, with the atoms labelled, are mirror images
    numbers = np.array([7, 1, 1, 1])
    angle = np.array([0, 2, 4]) * np.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    up = np.vstack([[0, 0, 0], 0.94 * ring + [0, 0, 0.35]])
    down = up * [1, 1, -1]
    potential = XtbPotential(numbers)
    flat = refine(potential, np.vstack([[0, 0, 0.02], 1.0 * ring]), reactant=up, product=down)
    assert flat.converged
    found = verify(potential, flat.positions, up, down)
    assert found.verdict == "intended", found.reason
    # and the same side twice is not
    assert verify(potential, flat.positions, up, up * [1.02, 1.02, 1.0]).verdict != "intended"


def test_a_barrier_low_enough_to_leap_over_is_seen():
    """CH3 + C2H6 on GFN2-xTB, 0.001 eV above the complex: at the usual distance both sides fall to the product."""
    x = np.array(
        [[1.8245, 0.2963, 0.4995], [-0.4706, -0.1319, -0.8389], [-1.5985, -0.2467, 0.1577],
         [1.7591, -0.349, 1.3584], [1.7993, 1.3456, 0.7379], [2.5994, 0.0239, -0.1959], [0.5783, 0.0575, -0.2329],
         [-0.5914, 0.7178, -1.5043], [-0.3306, -1.0433, -1.4129], [-1.4499, -1.1036, 0.8115],
         [-2.5543, -0.3734, -0.3532], [-1.6622, 0.6489, 0.7724]]
    )  # fmt: skip
    potential = XtbPotential([6] * 3 + [1] * 9, 0, 1)
    reactant, product = x.copy(), x.copy()
    reactant[[0, 3, 4, 5]] += 1.5 * (x[0] - x[1]) / np.linalg.norm(x[0] - x[1])
    product[[0, 3, 4, 5, 6]] += 1.5 * (x[0] - x[1]) / np.linalg.norm(x[0] - x[1])
    reactant[6], product[6] = x[1] + 0.85 * (x[6] - x[1]), product[0] + 0.75 * (x[6] - x[0])
    checked = verify(potential, x, reactant, product)
    assert checked.verdict == "intended" and checked.barriers is not None
    assert 0 < checked.barriers[0] < 0.005 and checked.barriers[1] == pytest.approx(0.22, abs=0.01)


def test_an_unknown_method_is_refused(saddle):
    with pytest.raises(InputError, match='"quick" or "irc"'):
        verify(XtbPotential(NUMBERS), saddle.positions, HCN, HNC, method="fast")


def test_steepest_descent_on_a_quadratic_surface():
    # closed form: x_i(t) - x_i(0) = g_i (exp(-h_i t) - 1) / h_i
    values, slopes = np.array([2.0, -0.5, 0.0]), np.array([0.3, 0.1, -0.2])
    step = _quadratic_descent(values, slopes, 0.1)
    assert np.linalg.norm(step) == pytest.approx(0.1, rel=1e-6)
    t = -step[2] / slopes[2]  # the flat direction moves at constant speed
    assert step[:2] == pytest.approx(slopes[:2] * np.expm1(-values[:2] * t) / values[:2], rel=1e-6)


def test_irc_leaves_along_the_mode_and_follows_the_gradient(saddle):
    potential = XtbPotential(NUMBERS)
    modes = normal_modes(potential, saddle.positions)
    path, _ = irc(potential, saddle.positions, modes, 1, max_steps=12, least_force=0.05)
    assert len(path) == 13
    points = np.array([x for _, x in path])
    from molgen.saddle.modes import masses

    weights = np.sqrt(masses(NUMBERS))[:, None]
    for k in range(3, 12):
        _, forces = potential.energy_and_forces(points[k][None])
        tangent, down = (weights * (points[k + 1] - points[k - 1])).ravel(), (forces[0] / weights).ravel()
        assert tangent @ down / np.linalg.norm(tangent) / np.linalg.norm(down) > 0.95


def test_a_failing_calculator_ends_search_and_verification(saddle):
    failing = Scripted(XtbPotential(NUMBERS), after=5)
    with pytest.raises(CalculatorError, match="non-finite"):
        refine(failing, saddle.positions + 0.1 * np.eye(3), reactant=HCN, product=HNC, fmax=1e-6)
    assert failing.calls >= 6
    failing = Scripted(XtbPotential(NUMBERS), after=6)
    with pytest.raises(CalculatorError, match="non-finite"):
        verify(failing, saddle.positions, HCN, HNC)
    assert failing.calls > 6


def test_one_failed_step_is_tried_again_shorter(saddle):
    flaky = Scripted(XtbPotential(NUMBERS), fails={4})
    again = refine(flaky, saddle.positions + 0.1 * np.eye(3), reactant=HCN, product=HNC)
    assert again.converged
    assert again.energy == pytest.approx(saddle.energy, abs=1e-3)
