"""Prose: exact densities, one result however it is computed, symmetries, causality. Random weights, no bias zero."""

from __future__ import annotations

import math
from concurrent.futures import CancelledError
from threading import Event

import numpy as np
import pytest
import torch
from flow_cases import KELVIN, MOLECULES, conditionals, drawn, flow_of, jacobian, layout_of, log_prob, real
from scipy.spatial.transform import Rotation

from molgen.errors import InputError
from molgen.geometry.internal import to_cartesian, to_internal
from molgen.prose.generate import propose, sample
from molgen.prose.zmatrix import canonical

# densities


@MOLECULES
def test_samples_carry_their_density(molecule: str) -> None:
    """+inf where there is no density: rings that do not close, and centres of the wrong hand."""
    _, x, log_q, _ = drawn(molecule)
    finite = log_q.isfinite()
    assert finite.sum() >= 3 and x.shape == (8, layout_of(molecule).atoms, 3)
    assert (log_prob(molecule, x[finite]) - log_q[finite]).abs().max() < 1e-9
    assert (log_q[~finite] == math.inf).all()


@pytest.mark.parametrize("molecule", ["G/ace-nme", "P/ace-nme"])
def test_log_q_is_the_jacobian_of_the_sampler(molecule: str) -> None:
    log_q, volume = jacobian(layout_of(molecule))
    assert log_q == pytest.approx(volume, abs=1e-5)


def test_density_integrates_to_one() -> None:
    """The density at 400 K, averaged over samples at 440 K with weights, is as much as lies within the limits."""
    hot = drawn("G/ace-nme", 300, 440.0, 0.1)
    inside = hot.log_q.isfinite()
    ratio = torch.zeros(len(hot.x), dtype=torch.float64)
    ratio[inside] = (log_prob("G/ace-nme", hot.x[inside], 400.0, flow_of(0.1)) - hot.log_q[inside]).exp()
    error = float(ratio.std()) / len(ratio) ** 0.5
    assert inside.float().mean() > 0.995 and error < 0.05
    assert float(ratio.mean()) == pytest.approx(1, abs=3 * error + 0.005)


def test_torsions_are_distributed_as_the_random_numbers_say() -> None:
    """A histogram of a torsion over samples alike in all else, against the exponential of the log-densities."""
    layout = layout_of("G/ace-nme")
    rotor = next(r for r in layout.rotors if r.fold == 1)
    noise = drawn("G/ace-nme", 300, 440.0, 0.1).noise[:1].repeat(300, 1).view(300, layout.atoms, 4)
    u = (torch.arange(300).double() + 0.5) / 300
    noise[:, rotor.rank, 2] = u
    parts, x = conditionals(layout, noise.flatten(1))
    phi = to_internal(layout.z, x[:, layout.order])[:, rotor.rank, 2]
    log_density = parts[:, rotor.rank]
    counts = torch.histc(phi, 8, -math.pi, math.pi) / 300
    fine = torch.linspace(-math.pi, math.pi, 4001, dtype=torch.float64)
    curve = torch.from_numpy(np.interp(fine.numpy(), phi.numpy(), log_density.numpy(), period=2 * math.pi)).exp()
    share = torch.stack(
        [torch.trapezoid(curve[k * 500 : k * 500 + 501], fine[k * 500 : k * 500 + 501]) for k in range(8)]
    )
    assert torch.allclose(counts, share / share.sum(), atol=0.02) and counts.max() > 0.15


# ways to the same result


@pytest.mark.parametrize("molecule", ["TP", "DF"])
@pytest.mark.parametrize("block", [3, 8, None], ids=["Gauss-Seidel 3", "Gauss-Seidel 8", "Jacobi"])
def test_blocks_at_once_give_the_sequential_result(molecule: str, block: int | None) -> None:
    layout, one = layout_of(molecule), drawn(molecule)
    some = slice(3, 7)
    out = sample(flow_of(), layout, one.noise[some], one.kelvin[some], block or layout.atoms)
    finite = one.log_q[some].isfinite()
    assert torch.equal(out.log_q.isfinite(), finite) and finite.sum() >= 2
    assert (out.x - one.x[some])[finite].abs().max() < 1e-6
    assert (out.log_q - one.log_q[some])[finite].abs().max() < 1e-6
    if block is None:
        assert out.rounds < layout.atoms, "fewer rounds than atoms"


def test_sampling_stops_between_atoms() -> None:
    layout, one, stop = layout_of("TP"), drawn("TP"), Event()
    stop.set()
    with pytest.raises(CancelledError):
        sample(flow_of(), layout, one.noise[:2], one.kelvin[:2], stop=stop)


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    """To rounding errors: matrix products add up in another order when the batch is of another size."""
    layout, flow = layout_of("G/ace-nme"), flow_of()
    calls: list[int] = []
    x, log_q = propose(flow, layout, 5, KELVIN, 7, batch_size=2, progress=calls.append)
    assert calls == [2, 2, 1] and x.shape == (5, 19, 3) and x.dtype == log_q.dtype == np.float64
    for first, n, size in ((0, 5, 5), (3, 2, 256), (4, 1, 1)):
        other, other_q = propose(flow, layout, n, KELVIN, 7, first=first, batch_size=size)
        assert np.abs(other - x[first : first + n]).max() < 1e-9
        assert np.abs(other_q - log_q[first : first + n]).max() < 1e-9
    again, again_q = propose(flow, layout, 5, KELVIN, 7, batch_size=2)
    assert np.array_equal(again, x) and np.array_equal(again_q, log_q), "to the bit"
    assert np.abs(propose(flow, layout, 1, KELVIN, 8)[0] - x[:1]).max() > 0.1


def test_threads_change_nothing() -> None:
    """Batches side by side give the same bits; torch has its threads back afterwards, after a failure too."""
    layout, flow, before = layout_of("GG"), flow_of(0.1, torch.float32), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            told: list[int] = []
            found.append(propose(flow, layout, 10, KELVIN, 1, batch_size=4, progress=told.append))
            assert told == [4, 4, 2] and torch.get_num_threads() == threads
        with pytest.raises(RuntimeError, match="stop"):
            propose(flow, layout, 10, KELVIN, 1, batch_size=4, progress=lambda _: stop())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert np.array_equal(one, three)


def stop() -> None:
    raise RuntimeError("stop")


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="0 samples asked"):
        propose(flow_of(), layout_of("G/ace-nme"), 0, KELVIN, 0)


def test_single_precision_is_close() -> None:
    layout, one, flow = layout_of("TP"), drawn("TP"), flow_of(dtype=torch.float32)
    finite = one.log_q.isfinite()
    assert (log_prob("TP", one.x[finite], flow=flow) - one.log_q[finite]).abs().max() < 0.05
    out = sample(flow, layout, one.noise[:4], one.kelvin[:4])
    assert out.x.dtype == out.log_q.dtype == torch.float64
    finite = finite[:4] & out.log_q.isfinite()
    assert finite.any() and (out.log_q - one.log_q[:4])[finite].abs().max() < 0.2
    own = log_prob("TP", out.x[finite], flow=flow)
    assert (own - out.log_q[finite]).abs().max() < 0.05, "a single-precision sample has its own density, nearly"


# symmetries


@MOLECULES
def test_rigid_motion_changes_nothing(molecule: str) -> None:
    x = real(molecule)
    before = log_prob(molecule, x)
    turn = torch.from_numpy(Rotation.random(None, np.random.default_rng(1)).as_matrix())
    assert before.isfinite().all()
    assert (log_prob(molecule, x @ turn.T + 5.0) - before).abs().max() < 1e-8


@pytest.mark.parametrize("molecule", ["TP", "DF", "IG", "W/ace-nme", "AL", "GG"])
def test_mirror_images_have_no_density(molecule: str) -> None:
    mirrored = log_prob(molecule, -real(molecule))
    if molecule == "GG":
        assert mirrored.isfinite().all(), "glycine has no hand"
    else:
        assert (mirrored == -math.inf).all()


@pytest.mark.parametrize("molecule", ["TP", "DF", "IG", "AL"])
def test_one_inverted_centre_has_no_density(molecule: str) -> None:
    """Reflect what hangs on one centre; of a prochiral centre that is the same molecule."""
    layout = layout_of(molecule)
    z, p = layout.z, layout.peptide
    q = to_internal(z, canonical(z, real(molecule)[:, layout.order]))
    tetrahedral = {int(z.references[i, 2]) for i in layout.narrow.tolist() if abs(math.sin(z.centre[i])) > 0.1}
    chiral = set()
    for c in tetrahedral:
        atom = z.order[c]
        residue = p.residue_names[p.residue_index[atom]]
        mirrored = q.clone()
        for i in (i for i in layout.narrow.tolist() if z.references[i, 2] == c):
            mirrored[:, i, 2] = -q[:, i, 2] - 2 * float(z.centre[i])
        x = to_cartesian(z, mirrored)[:, torch.from_numpy(z.rank)]
        if p.names[atom] == "CA" and residue != "GLY" or p.names[atom] == "CB" and residue in ("ILE", "THR"):
            chiral.add(f"{residue} {p.names[atom]}")
            assert (log_prob(molecule, x) == -math.inf).all(), chiral
        else:
            assert log_prob(molecule, x).isfinite().all(), f"{residue} {p.names[atom]}"
    expected = {name for name in p.residue_names if name != "GLY"}
    assert {name.split()[0] for name in chiral} == expected
    assert len(chiral) == len(expected) + ("ILE" in expected) + ("THR" in expected)


@pytest.mark.parametrize("molecule", ["DF", "AL", "V/ace-nme", "PK"])
def test_exchange_of_prochiral_labels_changes_nothing(molecule: str) -> None:
    """Exactly: CH2, the methyl groups of VAL and LEU, the last two hydrogens of CH3 and NH3+."""
    layout, x = layout_of(molecule), real(molecule)
    before, order = log_prob(molecule, x), layout.z.order
    assert len(layout.z.swaps) >= 3 and before.isfinite().all()
    for _, first, second in layout.z.swaps:
        exchanged = x.clone()
        exchanged[:, order[[*first, *second]]] = x[:, order[[*second, *first]]]
        assert torch.equal(log_prob(molecule, exchanged), before)


def test_periodic_torsions_turn_by_their_label() -> None:
    """Exact for the atom itself (methyl, ammonium, carboxylates, phenyl). Atoms that follow see which one it was, so
    the density of a whole molecule is the same under such exchanges only as far as it was learned."""
    layout = layout_of("DF")
    rotors = [r for r in layout.rotors if r.fold > 1]
    assert sorted(r.fold for r in rotors) == [2, 2, 2, 3]
    one = drawn("DF")
    noise = one.noise[one.log_q.isfinite()][:1]
    for rotor in rotors:
        rows = noise.repeat(rotor.fold, 1).view(rotor.fold, layout.atoms, 4)
        rows[:, rotor.rank, 3] = (torch.arange(rotor.fold) + 0.5) / rotor.fold
        parts, x = conditionals(layout, rows.flatten(1))
        assert torch.allclose(parts[:, : rotor.rank + 1], parts[:1, : rotor.rank + 1], atol=1e-9)
        phi = to_internal(layout.z, x[:, layout.order])[:, rotor.rank, 2]
        turns = torch.remainder(phi - phi[0], 2 * math.pi) * rotor.fold / (2 * math.pi)
        assert torch.allclose(turns.sort().values, torch.arange(rotor.fold).double(), atol=1e-9)
