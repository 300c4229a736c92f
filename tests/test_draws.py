"""Draws: another molecule weighs nothing and costs no energy, each under its reason; pieces are read and remade."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peptide_cases import FlowPotential, Wrong, tiny_flow

from molgen.data.peptide import Peptide, build_peptide
from molgen.errors import CalculatorError
from molgen.prose.evaluate import log_densities
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.validity import validate
from molgen.reweight.importance import normalised, psis
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
    """Positions (N, 22, 3) and log-densities, the first of which are spoilt."""
    x, log_q = propose(tiny_flow().model, LAYOUT, 4 * N, T, 0)
    good = np.flatnonzero(np.isfinite(log_q) & validate(PEPTIDE, x).valid)[:N]
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


def test_another_molecule_weighs_nothing_and_costs_no_energy(
    spoilt: list[int], potential: Recording, proposals: tuple[np.ndarray, np.ndarray]
) -> None:
    """All N stay; the smoothed weights of the spoilt are exactly zero; the others are as before."""
    found, lost = drawn(), [MIRRORED, STRETCHED, CLASHING, OUTSIDE]
    assert len(found) == N and np.flatnonzero(np.isneginf(found.log_weights)).tolist() == lost
    assert found.rejections == {
        "outside the space of conformations": 1, "wrong chirality": 1, "broken topology": 2,
    }  # fmt: skip
    assert not normalised(psis(found.log_weights))[lost].any() and np.isnan(found.energies[lost]).all()
    kept = np.setdiff1d(np.arange(N), lost)
    x, log_q = proposals
    assert found.calls == len(kept) and np.array_equal(potential.asked, x[kept])
    energies = -KB * T * log_densities(tiny_flow().model, LAYOUT, x[kept], T)
    assert found.log_weights[kept] == pytest.approx(-energies / (KB * T) - log_q[kept], abs=1e-3)


def test_each_draw_counts_once(spoilt: list[int], potential: Recording, proposals: Any) -> None:
    """Mirrored and stretched: of wrong chirality. A NaN of the calculator has its own reason."""
    x, log_q = proposals
    both = np.stack([stretched(x[MIRRORED]), x[WHOLE], x[WHOLE]])
    verdicts = validate(PEPTIDE, both)
    assert verdicts.wrong_chirality[0] and verdicts.broken_topology[0]
    found = Draws(both, log_q[:3], np.array([np.nan, np.nan, 1.0]), verdicts, T, 2, {})
    assert found.rejections == {"wrong chirality": 1, "non-finite energy": 1}


def test_nothing_but_other_molecules(potential: Recording, proposals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror images of all but the spoilt: said by reason, and not one energy was asked."""
    x, log_q = proposals[0][OUTSIDE:] * [1, 1, -1], proposals[1][OUTSIDE:]
    monkeypatch.setattr(workflow, "propose", lambda *_, **__: (x, log_q))
    reasons = "1 x outside the space of conformations, 7 x wrong chirality"
    with pytest.raises(CalculatorError, match=rf"AA: no sample of 8 has a finite energy \({reasons}\)"):
        draw(tiny_flow().model, LAYOUT, Energies(PEPTIDE, "auto", 1), 8, T, 0, Store(None), "draws")
    assert not potential.asked


def test_pieces_are_read_and_those_without_validity_are_made_anew(
    spoilt: list[int], potential: Recording, tmp_path: Any
) -> None:
    with Run(tmp_path, "peptide", {}) as run:
        store = Store(run)
        first, asked = drawn(store), len(potential.asked)
        assert spoilt == [0, 5, 10]
        again = drawn(store)
        assert spoilt == [0, 5, 10] and len(potential.asked) == asked
        assert again.rejections == first.rejections and np.array_equal(again.log_weights, first.log_weights)
        old = store.get("draws-0000005")
        assert old is not None
        store.put("draws-0000005", {key: old[key] for key in ("positions", "log_q", "energies", "seconds", "calls")})
        remade = drawn(store)
        assert spoilt == [0, 5, 10, 5] and np.array_equal(remade.log_weights, first.log_weights)
        assert remade.calls == first.calls


@pytest.mark.parametrize("smc", [False, True])
def test_no_frame_with_a_weight_is_invalid(smc: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
    valid = validate(PEPTIDE, ensemble.positions).valid
    assert ensemble.validity["broken topology"] > 5 and len(ensemble) == 60
    assert (ensemble.weights > 0).sum() > 5 and valid[ensemble.weights > 0].all()
    if smc:
        assert ensemble.groups is not None and not np.array_equal(ensemble.groups, np.arange(60))
    else:
        assert not valid.all()
