"""What runs on a GPU gives what the CPU gives. Skipped where there is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from prose_cases import md_set
from test_tsmodel import built_in

from molgen.data.peptide import build_peptide
from molgen.potentials.openmm import platforms
from molgen.prose.frames import Frames
from molgen.prose.generate import sample, uniform
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.prose.training import ProseLoss, frame_losses, train_prose
from molgen.prose.weights import load_flow
from molgen.train.graphs import CapturedGradients
from molgen.tsgen.condition import prepare
from molgen.tsgen.model import TSModel
from molgen.tsgen.training import FlowSettings, flow_loss, graphed
from molgen.workflows.draws import Energies, Store, draw
from molgen.workflows.finetune import FinetuneSettings, finetune_flow

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LOSS = ProseLoss(frames=8, sequences=2)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    missing = (torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    return torch.cat([g.flatten().double().cpu() for g in missing])


@gpu
def test_samples_of_the_flow() -> None:
    """Alike to rounding: where a sample sits on the edge of a spline's bin, single precision may tell them apart."""
    flow, layout = load_flow("prose").model, Layout.of(build_peptide("FK"))
    noise = torch.stack([uniform(1, i, layout.noise) for i in range(32)])
    kelvin = torch.full((32,), 310.0, dtype=torch.float64)
    here = sample(flow, layout, noise, kelvin)
    there = sample(copy.deepcopy(flow).cuda(), layout, noise, kelvin)
    assert (here.x - there.x.cpu()).abs().amax((1, 2)).median() < 1e-3
    assert (here.log_q - there.log_q.cpu()).abs().median() < 1e-2


@gpu
@pytest.mark.parametrize("sequence", ["GG", "WP"])
def test_gradients_of_the_flow_with_and_without_a_graph(sequence: str) -> None:
    flow, layout = load_flow("prose").model, Layout.of(build_peptide(sequence))
    noise = torch.stack([uniform(1, i, layout.noise) for i in range(8)])
    x = sample(flow, layout, noise, torch.full((8,), 310.0, dtype=torch.float64)).x.numpy()
    frames = Frames.of(layout, x, layout.peptide.potential("Reference").energy(x), np.full(8, 310.0))
    index = torch.arange(len(frames))
    frame_losses(flow, frames, index, LOSS)["loss"].backward()
    moved, there = copy.deepcopy(flow).cuda(), frames.to("cuda")
    moved.zero_grad()
    frame_losses(moved, there, index.cuda(), LOSS)["loss"].backward()
    wanted = gradients(flow)
    assert (gradients(moved) - wanted).norm() < 1e-3 * wanted.norm()
    moved.zero_grad()
    captured = CapturedGradients(moved, 0.5, lanes=2)
    jobs = [(key, lambda i: frame_losses(moved, there, i, LOSS), index) for key in ("one", "another", "third")]
    for times in (1, 2):  # they add up, side by side and one after the other
        found = captured(jobs)
        assert torch.stack([losses["loss"] for losses in found]).std() < 1e-5
        assert (gradients(moved) - 1.5 * times * wanted).norm() < 1e-3 * 1.5 * times * wanted.norm()


@gpu
def test_training_of_the_flow(tmp_path) -> None:
    torch.manual_seed(0)
    frames = [Frames.of_md(md_set("G", "ace-nme")), Frames.of_md(md_set("GG", frames=8))]
    figures = train_prose(ProseFlow(), frames, frames, tmp_path, steps=6, loss=LOSS, device="cuda", log=lambda s: None)
    assert figures["step"] == 6 and np.isfinite(figures["val_nll"])
    assert load_flow(tmp_path / "best").model.config == ProseFlow().config


@gpu
def test_gradients_of_tsgen_with_and_without_graphs() -> None:
    """Each shape has its own graph; their memory is shared."""
    torch.manual_seed(0)
    model = TSModel([1, 6, 7, 8], scalars=32, vectors=16, pair=16, layers=2, heads=4).eval()
    moved = copy.deepcopy(model).cuda()
    network = graphed(moved)
    both = prepare(built_in()[:2])
    for _ in range(2):
        for batch in (both, both.select(torch.tensor([0]))):
            for one, call, data in ((model, model, batch), (moved, network, batch.to("cuda"))):
                one.zero_grad()
                flow_loss([call], data, torch.Generator().manual_seed(1), FlowSettings())["loss"].backward()
            wanted = gradients(model)
            assert (gradients(moved) - wanted).norm() < 1e-3 * wanted.norm()


@gpu
def test_finetuning(tmp_path) -> None:
    """Learns on the GPU what it learns on the CPU, to rounding, and comes back."""
    flow, layout = load_flow("prose"), Layout.of(build_peptide("GG"))
    settings = FinetuneSettings(samples=256, passes=1.0)
    found = {}
    with Energies(layout.peptide, "Reference", 1) as energies:
        for device in ("cpu", "cuda"):
            store, folder = Store(None), tmp_path / device

            def draws(proposal, n, seed, name, store=store, energies=energies):
                return draw(proposal.model, layout, energies, n, 310.0, seed, store, name)

            found[device] = finetune_flow(
                flow, layout, draws, 310.0, 1, store, folder, seed=1, scratch=folder, device=device, settings=settings
            )[1]
    cpu, cuda = (rounds[0].losses["spread"] for rounds in (found["cpu"], found["cuda"]))
    assert abs(cuda - cpu) < 0.05 * cpu


@pytest.mark.skipif("CUDA" not in platforms(), reason="OpenMM has no CUDA platform here")
def test_energies_of_openmm() -> None:
    flow, peptide = load_flow("prose").model, build_peptide("FK")
    noise = torch.stack([uniform(1, i, Layout.of(peptide).noise) for i in range(8)])
    x = sample(flow, Layout.of(peptide), noise, torch.full((8,), 310.0, dtype=torch.float64)).x.numpy()
    exact, found = (peptide.potential(name).energy(x) for name in ("Reference", "CUDA"))
    assert np.abs(found - exact).max() < 1e-3 * np.abs(exact).max()
