"""Prose: what a conditional may know, other molecules and temperatures, and what must harm nobody."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flow_cases import KELVIN, conditionals, drawn, flow_of, layout_of, log_prob, real
from prose_cases import SMALL
from torch import Tensor

from molgen.prose.generate import propose, sample, uniform
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.physics import CHANNELS, KNOTS, scan
from molgen.prose.rows import Rows
from molgen.prose.state import CompleteState
from molgen.prose.validity import LONGEST, validate
from molgen.prose.zmatrix import canonical

# causality


@pytest.mark.parametrize("molecule", ["TP", "W/ace-nme"])
def test_no_conditional_sees_its_own_or_later_atoms(molecule: str) -> None:
    layout, flow = layout_of(molecule), flow_of()
    x = canonical(layout.z, real(molecule)[:1, layout.order])
    kelvin = torch.full((1,), KELVIN).double()

    def known(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state = CompleteState.of(layout, x[:, torch.from_numpy(layout.z.rank)], kelvin, torch.float64)
        h = flow.encode(layout)
        content = flow.content(layout, state, h)
        q = flow.queries(layout, state, h, content, Rows.of(layout, range(layout.atoms)), state.local)
        local = torch.cat([state.local.slopes, state.local.precisions, state.local.coupling], -1)
        return q[0], local[0], state.scan[0]

    with torch.no_grad():
        before = known(x)
        for j in range(3, layout.atoms, 4):
            moved = x.clone()
            moved[:, j] += 0.1
            after = known(moved)
            for one, other in zip(before[:2], after[:2], strict=True):
                same = (one == other).all(-1)
                assert same[: j + 1].all(), f"rank {j}"
                assert not same[j + 1 :].all() or j == layout.atoms - 1
            upto = layout.rotor_ranks <= j
            assert torch.equal(before[2][upto], after[2][upto])
            assert upto.all() or not torch.equal(before[2][~upto], after[2][~upto])


def test_density_of_the_first_atoms_does_not_know_the_rest() -> None:
    """By derivatives: d log p / dx of the last atom enters through its own conditional alone."""
    layout = layout_of("TP")
    noise = drawn("TP").noise[:1].repeat(2, 1).view(2, layout.atoms, 4)
    for rank in (5, 14, 22):
        rows = noise.clone()
        rows[1, rank:] = 0.5 + 0.8 * (rows[1, rank:] - 0.5)
        parts, x = conditionals(layout, rows.flatten(1))
        assert torch.allclose(parts[0, :rank], parts[1, :rank], atol=1e-12)
        assert (parts[0, rank:] - parts[1, rank:]).abs().min() > 1e-6
        assert (x[0] - x[1])[layout.order[:rank]].abs().max() < 1e-12


# other molecules, other temperatures


def test_no_position_in_the_chain_is_memorised() -> None:
    """Atoms alike as far as the encoder reaches are the same to the network, wherever they stand."""
    layout, flow = layout_of("AAAAAAA"), flow_of()
    p = layout.peptide
    with torch.no_grad():
        h = flow.encode(layout)
    residue, names = p.residue_index[layout.z.order], [p.names[i] for i in layout.z.order]
    rows = {(int(residue[i]), name): i for i, name in enumerate(names)}
    for name in set(p.names) - {"OXT", "H2", "H3"}:
        i, j, end = (rows[r, name] for r in (3, 4, 0))
        assert torch.equal(layout.nodes[i], layout.nodes[j])
        assert torch.allclose(h[i], h[j], atol=1e-12)
        assert not torch.allclose(h[i], h[end], atol=1e-3), "termini differ"
    # nothing that the network reads tells one residue's torsions from another's
    assert {r.fold for r in layout.rotors} == {1, 2, 3}
    assert [(r.fold, len(r.atoms), r.beyond[2] > 0) for r in layout.rotors if names[r.rank] == "HB1"] == [
        (3, 3, False)
    ] * 7


def test_twelve_residues() -> None:
    layout = layout_of("GGGGGGGGGGGG")
    x, log_q = propose(flow_of(0.1), layout, 1, 310.0, 0)
    assert np.isfinite(log_q).all() and x.shape == (1, 87, 3)
    assert float(log_prob("GGGGGGGGGGGG", torch.from_numpy(x), 310.0, flow_of(0.1))) == pytest.approx(
        log_q[0], abs=1e-9
    )
    bonds = layout.peptide.bonds
    length = np.linalg.norm(x[0, bonds[:, 0]] - x[0, bonds[:, 1]], axis=1)
    assert np.abs(length - layout.peptide.parameters.bond_length).max() < 0.25


def test_temperature_is_continuous() -> None:
    x = real("TP")
    at = {t: log_prob("TP", x, t) for t in (310.0, 310.001, 310.002, 600.0)}
    first, second = at[310.001] - at[310.0], at[310.002] - at[310.001]
    assert first.abs().max() < 0.01 and (first - second).abs().max() < 1e-5 and first.abs().min() > 0
    assert (at[600.0] - at[310.0]).abs().min() > 0.1
    both = torch.cat([x, x])
    with torch.no_grad():
        mixed = flow_of().log_prob(layout_of("TP"), both, torch.tensor([310.0, 310.0, 600.0, 600.0]).double())
    assert torch.allclose(mixed, torch.cat([at[310.0], at[600.0]]), atol=1e-9), "a temperature for each"


def test_broad_torsions_start_from_the_boltzmann_distribution_of_their_scan() -> None:
    """A fresh network adds nothing to what the force field says."""
    torch.manual_seed(0)
    flow = ProseFlow(SMALL).double()
    scans = torch.randn(2, 3, CHANNELS, KNOTS, dtype=torch.float64) * 0.008
    kt = torch.tensor([0.0267, 0.05]).double()
    heights = flow._circle(torch.randn(2, 3, 24).double(), torch.randn(2, 3, 2).double(), scans, kt).detach()
    energy = scans[:, :, :3].sum(2) / kt[:, None, None]
    off = heights + energy
    assert (off - off.mean(-1, keepdim=True)).abs().max() < 0.1 * energy.abs().max(), "but for soft limits"
    assert torch.equal(heights, flow._circle(torch.randn(2, 3, 24).double(), torch.zeros(2, 3, 2).double(), scans, kt))


# faults


@pytest.mark.parametrize("bad", [math.nan, 0.0, 1.0])
def test_noise_out_of_range_harms_nobody_else(bad: float) -> None:
    one = drawn("G/ace-nme", 300, 440.0, 0.1)
    noise = one.noise[:3].clone()
    noise[1] = bad
    out = sample(flow_of(0.1), layout_of("G/ace-nme"), noise, one.kelvin[:3])
    assert (out.log_q - one.log_q[:3])[[0, 2]].abs().max() < 1e-9
    assert not out.log_q.isnan().any()
    if math.isnan(bad):
        assert out.log_q[1] == math.inf, "weight zero"


def test_positions_that_are_no_numbers_have_no_density() -> None:
    x = real("TP").clone()
    x[0, layout_of("TP").order[0]] = math.nan
    found = log_prob("TP", x)
    assert found[0] == -math.inf and found[1] == pytest.approx(float(log_prob("TP", real("TP"))[1]), abs=1e-9)


def test_open_rings_weigh_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proline with a ring torsion anywhere: closed if its last bonds can meet, here 5 % longer at most."""

    def flat(layout: Layout, rotor: Any, x: Tensor) -> Tensor:
        return scan(layout, rotor, x) * (rotor.closure is None)

    monkeypatch.setattr("molgen.prose.generate.scan", flat)
    layout = layout_of("P/ace-nme")
    (closing,) = np.flatnonzero(layout.z.closes)
    high = layout.limits.high.clone()
    high[closing, :2] *= 1.05 / LONGEST
    layout = replace(layout, limits=replace(layout.limits, high=high))
    noise = torch.stack([uniform(1, i, layout.noise) for i in range(32)])
    out = sample(flow_of(0.1), layout, noise, torch.full((32,), KELVIN).double())
    ends = layout.z.references[closing, [1, 2]]
    x = out.x[:, layout.order]
    gap = (x[:, ends[0]] - x[:, ends[1]]).norm(dim=-1)
    closed = out.log_q.isfinite()
    assert torch.equal(closed, gap < high[closing, :2].sum()) and 3 < closed.sum() < 29
    assert (out.log_q[~closed] == math.inf).all()
    for end, ideal in zip(ends, (layout.theta0[closing], layout.r0[closing]), strict=True):
        length = (x[closed, closing] - x[closed, end]).norm(dim=-1)
        assert 0.75 * ideal < length.min() and length.max() < 1.05 * ideal + 1e-6


def test_every_parameter_is_used_and_trained() -> None:
    flow, layout, x = flow_of(), layout_of("TP"), real("TP")
    value = flow.log_prob(layout, torch.cat([x, -x]), torch.full((4,), KELVIN).double())
    assert value[:2].isfinite().all() and (value[2:] == -math.inf).all()
    gradients = torch.autograd.grad(value[:2].sum(), [*flow.parameters()], allow_unused=True)
    idle = set()
    for (name, _), gradient in zip(flow.named_parameters(), gradients, strict=True):
        assert gradient is not None and gradient.isfinite().all(), name
        if not gradient.any():
            idle.add(name.removeprefix("trunk.layers.0."))
    vectors = {"norm_v.gain", "probe_receive.weight", "probe_send.weight", "value_v.weight", "mix_v.weight"}
    assert idle == vectors, "the trunk's first layer has no vectors yet"


def test_a_flow_can_be_rebuilt_from_its_description() -> None:
    flow = flow_of()
    other = ProseFlow(flow.describe()).double()
    other.load_state_dict(flow.state_dict())
    assert torch.equal(log_prob("TP", real("TP"), flow=other.eval()), log_prob("TP", real("TP")))


@pytest.mark.parametrize("molecule", ["TP", "IG", "AL"])
def test_no_sample_has_the_wrong_handedness(molecule: str) -> None:
    """Not even where the random numbers ask for the far ends of every dihedral."""
    layout = layout_of(molecule)
    noise = torch.stack([uniform(5, i, layout.noise) for i in range(60)]).view(60, -1, 4)
    noise[:15, :, 2], noise[15:30, :, 2] = 1e-6, 1 - 1e-6
    out = sample(flow_of(), layout, noise.flatten(1), torch.full((60,), KELVIN).double())
    wrong = validate(layout.peptide, out.x.numpy()).wrong_chirality
    assert not wrong[30:].any() and not wrong[out.log_q.isfinite().numpy()].any()
    assert out.log_q[30:].isfinite().sum() > 10
