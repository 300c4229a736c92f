"""Draws: another molecule is drawn again and costs no energy, each under its reason; pieces are read again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peptide_cases import FlowPotential, Wrong, tiny_flow

from molgen.data.peptide import Peptide, build_peptide
from molgen.errors import CalculatorError
from molgen.potentials.openmm import OpenMMPotential
from molgen.prose.evaluate import log_densities
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.validity import validate
from molgen.rng import generator
from molgen.run import Run
from molgen.units import KB
from molgen.workflows import draws as workflow
from molgen.workflows import peptide as sampling
from molgen.workflows.draws import Draws, Energies, Store, draw
from molgen.workflows.peptide import sample_peptide

T, N = 400.0, 12
PEPTIDE = build_peptide("AA")
LAYOUT = Layout.of(PEPTIDE)
WHOLE, MIRRORED, STRETCHED, CLASHING, OUTSIDE = range(5)  # what becomes of the first samples


def atom(residue: int, name: str) -> int:
    return next(i for i, n in enumerate(PEPTIDE.names) if n == name and PEPTIDE.residue_index[i] == residue)


def stretched(x: np.ndarray) -> np.ndarray:
    """Positions (N, 3) with a C-H bond of the first methyl group half as long again."""
    moved, (carbon, hydrogen) = x.copy(), (atom(0, "CB"), atom(0, "HB1"))
    moved[hydrogen] += 0.5 * (x[hydrogen] - x[carbon])
    return moved


def clashing(x: np.ndarray) -> np.ndarray:
    """Positions (N, 3) with two hydrogens of a methyl group 0.5 A apart, their bonds as long as before."""
    carbon, first, second = (x[atom(0, name)] for name in ("CB", "HB1", "HB2"))
    a, b = first - carbon, second - carbon
    b = a + 0.5 * (b - a) / np.linalg.norm(b - a)
    moved = x.copy()
    moved[atom(0, "HB2")] = carbon + b * np.linalg.norm(second - carbon) / np.linalg.norm(b)
    return moved


@pytest.fixture(scope="module")
def proposals() -> tuple[np.ndarray, np.ndarray]:
    """Positions (2 N, 23, 3) and log-densities, the first of which are spoilt."""
    x, log_q = propose(tiny_flow().model, LAYOUT, 8 * N, T, 0)
    good = np.flatnonzero(np.isfinite(log_q) & validate(PEPTIDE, x).valid)[: 2 * N]
    x, log_q = x[good], log_q[good]
    x[MIRRORED] *= [1, 1, -1]
    x[STRETCHED], x[CLASHING] = stretched(x[STRETCHED]), clashing(x[CLASHING])
    log_q[OUTSIDE] = np.inf
    return x, log_q


@pytest.fixture
def spoilt(proposals: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """They are what the flow proposes, in pieces of five; the list says which pieces were drawn."""
    drawn: list[int] = []

    def fake(flow: Any, layout: Any, n: int, temperature: float, seed: int, *, first: int = 0, progress: Any) -> Any:
        drawn.append(first)
        return tuple(part[first : first + n].copy() for part in proposals)

    monkeypatch.setattr(workflow, "propose", fake)
    monkeypatch.setattr(workflow, "PIECE", 5)
    return drawn


class Recording(FlowPotential):
    """The flow's own energies, and the positions that they were asked of."""

    def __init__(self, peptide: Peptide):
        super().__init__(peptide, T)
        self.asked: list[np.ndarray] = []

    def _evaluate(self, positions, forces):
        self.asked.extend(positions)
        return super()._evaluate(positions, forces)


@pytest.fixture
def potential(monkeypatch: pytest.MonkeyPatch) -> Recording:
    found = Recording(PEPTIDE)
    monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: found)
    return found


def drawn(store: Store | None = None) -> Draws:
    energies = Energies(PEPTIDE, "auto", 1)
    return draw(tiny_flow().model, LAYOUT, energies, N, T, 0, store or Store(None), "draws")


def test_the_faults_are_what_they_are_meant_to_be(proposals: tuple[np.ndarray, np.ndarray]) -> None:
    found = validate(PEPTIDE, proposals[0])
    assert np.flatnonzero(found.wrong_chirality).tolist() == [MIRRORED]
    assert np.flatnonzero(found.bad_bond).tolist() == [STRETCHED]
    assert np.flatnonzero(found.contact).tolist() == [CLASHING]


def test_another_molecule_is_drawn_again_and_costs_no_energy(
    spoilt: list[int], potential: Recording, proposals: tuple[np.ndarray, np.ndarray]
) -> None:
    """N draws of the molecule, in the order of the proposals; their density is the flow's over the share kept."""
    found, lost = drawn(), [MIRRORED, STRETCHED, CLASHING, OUTSIDE]
    kept = np.setdiff1d(np.arange(N + len(lost)), lost)
    x, log_q = proposals
    assert len(found) == N and found.validity.valid.all() and np.array_equal(found.positions, x[kept])
    assert found.proposals == N + len(lost) and found.log_share == pytest.approx(np.log(N / (N + len(lost))))
    assert found.redrawn == {
        "outside the space of conformations": 1, "wrong chirality": 1, "bad bond": 1, "contact": 1,
    }  # fmt: skip
    assert found.log_q == pytest.approx(log_q[kept] - found.log_share)
    assert found.calls == N and np.array_equal(potential.asked, x[kept]) and not found.rejections
    energies = -KB * T * log_densities(tiny_flow().model, LAYOUT, x[kept], T)
    assert found.log_weights == pytest.approx(-energies / (KB * T) - found.log_q, abs=1e-3)


def test_the_restricted_density_is_normalised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line in place of a flow: N(0, 1) proposals of which those below 1 count as the molecule. The mean weight is Z
    of the target restricted likewise, whatever share is drawn again."""

    def normal(*_: Any, first: int, progress: Any) -> tuple[np.ndarray, np.ndarray]:
        n, seed = _[2], _[4]
        u = np.stack([generator(seed, i).standard_normal(1) for i in range(first, first + n)])
        x = np.broadcast_to(3.0 * np.arange(len(PEPTIDE))[:, None], (n, len(PEPTIDE), 3)).copy()  # no two coincide
        x[:, 0, 0] = u[:, 0]
        return x, -0.5 * u[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)

    def below(peptide: Peptide, x: np.ndarray) -> Any:
        found = validate(PEPTIDE, np.zeros_like(x))
        nothing = np.zeros(len(x), dtype=bool)
        return replace(found, wrong_chirality=nothing, bad_bond=nothing, contact=x[:, 0, 0] > 1)

    monkeypatch.setattr(workflow, "propose", normal)
    monkeypatch.setattr(workflow, "validate", below)
    flat = type("Flat", (Wrong,), {"_evaluate": lambda self, x, forces: (0.5 * KB * T * x[:, 0, 0] ** 2, None)})
    monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: flat(self, 1))
    found = draw(tiny_flow().model, LAYOUT, Energies(PEPTIDE, "auto", 1), 4000, T, 3, Store(None), "draws")
    below_one = 0.841344746
    assert found.redrawn["contact"] == found.proposals - 4000
    assert 4000 / found.proposals == pytest.approx(below_one, abs=0.02)
    log_z = np.logaddexp.reduce(found.log_weights) - np.log(4000)
    assert log_z == pytest.approx(0.5 * np.log(2 * np.pi) + np.log(below_one), abs=0.02)


def test_each_proposal_counts_once(spoilt: list[int], potential: Recording, proposals: Any) -> None:
    """Mirrored and stretched: of wrong chirality."""
    x, log_q = proposals
    verdicts = validate(PEPTIDE, np.stack([stretched(x[MIRRORED]), x[WHOLE], x[WHOLE]]))
    assert verdicts.wrong_chirality[0] and verdicts.broken_topology[0]
    assert workflow._faults(log_q[:3], verdicts) == {"wrong chirality": 1}


def test_no_energy_weighs_nothing(proposals: Any) -> None:
    x, log_q = proposals
    found = Draws(
        x[:3], log_q[:3], np.array([np.nan, 1.0, np.inf]), validate(PEPTIDE, x[:3]), T, 3, {}, 3, {"sampling": 0.0}
    )
    assert found.rejections == {"non-finite energy": 2} and np.isneginf(found.log_weights).tolist() == [
        True,
        False,
        True,
    ]


def test_a_resumed_run_times_an_energy_before_it_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws were read from files: what an energy costs is not known, and a pool may pay all the same."""
    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(workflow, "pool_pays", lambda each, remaining, cores: asked.append((each, remaining)) or False)
    energies, x = Energies(PEPTIDE, "Reference", "auto"), generator(0).standard_normal((5, len(PEPTIDE), 3))
    assert energies.plan(1000, x) is energies.potential
    assert len(asked) == 1 and asked[0][0] > 0 and asked[0][1] == 1000 and energies.potential.calls == 2
    energies.plan(10, x)
    assert energies.potential.calls == 2 and Energies(PEPTIDE, "Reference", "auto").plan(10) and len(asked) == 2
    alone = Energies(PEPTIDE, "Reference", 1)
    assert alone.plan(1000, x).calls == 0


def test_the_energy_that_decides_on_a_pool_is_timed_on_one_thread() -> None:
    """As in the pool's workers; a single process that was asked for may take all cores."""
    x = generator(0).standard_normal((1, len(PEPTIDE), 3))
    for platform, workers, properties in (
        ("CPU", "auto", {"Threads": "1"}),
        ("Reference", "auto", None),
        ("CPU", 1, None),
    ):
        potential = Energies(PEPTIDE, platform, workers).plan(100, x)
        assert isinstance(potential, OpenMMPotential) and potential.properties == properties
        assert np.isfinite(potential.energy(x)).all()


def test_nothing_but_other_molecules(potential: Recording, proposals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirror images: it ends, said by reason, and not one energy was asked."""
    mirrored, log_q = proposals[0][CLASHING:] * [1, 1, -1], proposals[1][CLASHING:]
    asked: list[int] = []

    def fake(flow: Any, layout: Any, n: int, *_: Any, first: int, progress: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append(n)
        index = np.arange(first, first + n) % len(log_q)
        return mirrored[index], log_q[index]

    monkeypatch.setattr(workflow, "propose", fake)
    monkeypatch.setattr(workflow, "PIECE", 50)
    with pytest.raises(
        CalculatorError, match=r"AA: \d+ of \d+ proposals are not this molecule \(.*\d+ x wrong chirality"
    ):
        draw(tiny_flow().model, LAYOUT, Energies(PEPTIDE, "auto", 1), 8, T, 0, Store(None), "draws")
    assert not potential.asked and asked[0] == 8 and 50 < sum(asked) < 150


def test_pieces_are_read_again(spoilt: list[int], potential: Recording, tmp_path: Any) -> None:
    with Run(tmp_path, "peptide", {}) as run:
        store = Store(run)
        first, asked = drawn(store), len(potential.asked)
        assert spoilt[:3] == [0, 5, 10] and asked == N
        before = list(spoilt)
        again = drawn(store)
        assert spoilt == before and len(potential.asked) == asked
        assert again.redrawn == first.redrawn and np.array_equal(again.log_weights, first.log_weights)


@pytest.mark.parametrize("smc", [False, True])
def test_no_frame_is_invalid(smc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distorted as no shipped flow is; energies that do not mind, so that nothing but validity can refuse them."""

    def crooked(*arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        x, log_q = propose(*arguments, **options)
        return x + 0.08 * generator(1).standard_normal(x.shape), log_q

    monkeypatch.setattr(workflow, "propose", crooked)
    monkeypatch.setattr(sampling, "MOVES", 2)
    flat = type("Flat", (Wrong,), {"_evaluate": lambda self, x, forces: (np.zeros(len(x)), 0 * x if forces else None)})
    monkeypatch.setattr(Peptide, "potential", lambda self, platform="auto", workers=1: flat(self, 1))
    torch.set_num_threads(1)
    ensemble = sample_peptide("AA", 60, 500.0, weights=tiny_flow(), smc=smc)
    assert len(ensemble) == 60 and (ensemble.weights > 0).sum() > 5
    assert validate(PEPTIDE, ensemble.positions).valid.all()
    if smc:
        assert ensemble.groups is not None and not np.array_equal(ensemble.groups, np.arange(60))
