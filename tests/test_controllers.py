"""Controllers of the CV sampler: symmetry, no net force, the same network again from its description."""

from __future__ import annotations

import json

import pytest
import torch
from equivariance import assert_equivariant, orthogonal, randomised, relative_error, rotate

from molgen.cvdiffusion.controller import Controller, ControllerConfig, build_controller
from molgen.cvdiffusion.space import CartesianSpace

centred = CartesianSpace(2).centred
NUMBERS = (0, 1, 1, 3, 4, 5)
QUADRUPLES = ((0, 1, 2, 3), (2, 3, 4, 5))
KINDS: dict[str, dict] = {
    "pair": {"kind": "pair"},
    "pair, handed": {"kind": "pair", "quadruples": QUADRUPLES},
    "trunk": {"kind": "trunk", "scalars": 16, "vectors": 8, "layers": 2},
    "trunk, handed": {"kind": "trunk", "scalars": 16, "vectors": 8, "layers": 2, "odd": 4},
}
HANDED = [name for name in KINDS if "handed" in name]


def controller(name: str, numbers: tuple[int, ...] = NUMBERS) -> Controller:
    """With large random weights, in double precision."""
    options = {"hidden": 32, "spread": 2.0} | KINDS[name]
    return randomised(build_controller(ControllerConfig(numbers=numbers, **options)).double())


def geometries(atoms: int = len(NUMBERS), scale: float = 1.5, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(5, atoms, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


R = torch.tensor([4e-4, 0.01, 0.3, 4.0, 36.0], dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in KINDS if "handed" not in name])
def test_turns_and_mirrors_with_the_molecule_wherever_it_is(name: str):
    model = controller(name)
    assert_equivariant(lambda x, _: [model(R, centred(x[0]))], [geometries()], ["1o"], 1e-8)
    assert_equivariant(lambda x, _: [model.correction(R[:, None, None], x[0], model.time(R / 36))], [geometries()],
                       ["1o"], 1e-8)  # fmt: skip


@pytest.mark.parametrize("name", HANDED)
def test_a_handed_controller_turns_but_tells_left_from_right(name: str):
    model, x = controller(name), centred(geometries())
    before = model(R, x)
    for seed in range(3):
        turn, mirror = orthogonal(seed), orthogonal(seed, improper=True)
        assert relative_error(model(R, rotate(x, turn)), rotate(before, turn)) < 1e-8
        assert relative_error(model(R, rotate(x, mirror)), rotate(before, mirror)) > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_no_net_force_and_a_score_for_each_atom(name: str):
    model = controller(name)
    score = model(R, centred(geometries()))
    assert score.shape == (5, 6, 3) and score.abs().max() > 0.1
    assert score.sum(1).abs().max() < 1e-10 * score.abs().max()


@pytest.mark.parametrize("name", ["trunk", "trunk, handed"])
def test_the_trunk_cannot_tell_apart_what_it_may_not(name: str):
    model, x = controller(name), centred(geometries())
    swap, other = [0, 2, 1, 3, 4, 5], [3, 1, 2, 0, 4, 5]
    assert relative_error(model(R, x[:, swap]), model(R, x)[:, swap]) < 1e-8
    assert relative_error(model(R, x[:, other]), model(R, x)[:, other]) > 1e-3


def test_many_atoms_are_as_equivariant_as_few():
    """Above 25 atoms torch's cdist would lose half the digits."""
    numbers = tuple(range(30))
    model, x = controller("trunk", numbers).float(), centred(geometries(30)).float() + 20.0
    shifted = model.correction(R[:, None, None].float(), x, model.time(R.float() / 36))
    plain = model.correction(R[:, None, None].float(), centred(x), model.time(R.float() / 36))
    assert relative_error(shifted, plain) < 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_extreme_noise_and_geometries_stay_finite(name: str):
    model = controller(name).float()
    for r in (1e-12, 4e-4, 36.0, 1e6):
        for scale in (1e-3, 1.0, 30.0, 1e3):
            score = model(torch.full((5,), r), centred(geometries(scale=scale)).float())
            assert score.isfinite().all(), (r, scale)
    coincident = torch.zeros(1, 6, 3)
    assert model(torch.ones(1), coincident).isfinite().all()


def test_at_large_noise_a_fresh_controller_is_the_score_of_the_source():
    """What the last layer starts with is small: the residual does not drown the Gaussian."""
    torch.manual_seed(0)
    model = build_controller(ControllerConfig("pair", NUMBERS, spread=2.0))
    x = centred(geometries(scale=6.0)).float()
    r = torch.full((5,), 36.0)
    assert model(r, x).detach().numpy() == pytest.approx(-x.numpy() / 38.0, abs=0.03)


@pytest.mark.parametrize("name", KINDS)
def test_described_and_built_again_it_is_the_same_network(name: str):
    model, x = controller(name), centred(geometries())
    described = json.loads(json.dumps(model.describe()))
    again = build_controller(described).double()
    again.load_state_dict(model.state_dict())
    again.eval()
    assert torch.equal(again(R, x), model(R, x)) and again.config == model.config


@pytest.mark.parametrize("atoms", [1, 3])
def test_point_controller(atoms: int):
    config = ControllerConfig("point", (1,) * atoms, hidden=16)
    model = randomised(build_controller(config))
    x = centred(geometries(atoms).float())
    score = model(R.float(), x)
    assert score.shape == x.shape and score.isfinite().all()
    again = build_controller(json.loads(json.dumps(model.describe())))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(R.float(), x), score)
    if atoms > 1:
        assert score.sum(1).abs().max() < 1e-5
    far = model(torch.full((5,), 1e6), 1e3 * x)
    assert far.isfinite().all()


def test_unknown_kind():
    with pytest.raises(KeyError, match="cube"):
        build_controller(ControllerConfig("cube", NUMBERS))
