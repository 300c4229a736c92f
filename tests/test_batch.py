"""Dense batches survive the way to torch-geometric and back, with PyG's own loader in between."""

from __future__ import annotations

import pytest
import torch
from ase.build import molecule
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from molgen.batch import DenseBatch
from molgen.errors import InputError

NAMES = ["H2O", "C6H6", "CH3CH2OH", "HCN"]


@pytest.fixture
def parts():
    atoms = [molecule(name) for name in NAMES]
    return [torch.tensor(a.positions) for a in atoms], [torch.tensor(a.numbers) for a in atoms]


def test_padding(parts):
    batch = DenseBatch.pad(*parts)
    assert len(batch) == 4 and batch.positions.shape == (4, 12, 3) and batch.positions.dtype == torch.float64
    assert batch.mask.sum(1).tolist() == [3, 12, 9, 3]
    assert batch.numbers[0].tolist() == [8, 1, 1] + [0] * 9
    assert not batch.positions[~batch.mask].any()
    for (x, z), xi, zi in zip(batch.molecules(), *parts, strict=True):
        assert torch.equal(x, xi) and torch.equal(z, zi)
    assert DenseBatch.pad(*parts, atoms=20).positions.shape == (4, 20, 3)


def test_round_trip_through_pyg(parts):
    batch = DenseBatch.pad(*parts)
    flat = batch.to_pyg()
    assert flat.num_graphs == 4 and flat.ptr.tolist() == [0, 3, 15, 24, 27]
    back = DenseBatch.from_pyg(flat)
    assert torch.equal(back.positions, batch.positions)
    assert torch.equal(back.numbers, batch.numbers) and torch.equal(back.mask, batch.mask)


def test_users_graphs_from_a_loader(parts):
    graphs = [Data(pos=x.float(), z=z, edge_index=torch.tensor([[0], [1]])) for x, z in zip(*parts, strict=True)]
    first, second = DataLoader(graphs, batch_size=2)
    assert DenseBatch.from_pyg(first).mask.sum(1).tolist() == [3, 12]
    assert DenseBatch.from_pyg(second).positions.shape == (2, 9, 3)
    assert DenseBatch.from_pyg(graphs).numbers.shape == (4, 12)
    one = DenseBatch.from_pyg(graphs[3])
    assert torch.equal(one.positions[0], parts[0][3].float()) and one.mask.all()


def test_a_mask_with_holes_loses_no_atom(parts):
    whole = DenseBatch.pad(*parts)
    mask = whole.mask.clone()
    mask[1, ::2] = False  # every other atom of benzene
    x, z = DenseBatch(whole.positions, whole.numbers, mask).molecules()[1]
    assert torch.equal(x, parts[0][1][1::2]) and torch.equal(z, parts[1][1][1::2])


def test_to_changes_precision_of_positions_only(parts):
    batch = DenseBatch.pad(*parts).to("cpu", torch.float32)
    assert batch.positions.dtype == torch.float32 and batch.numbers.dtype == torch.int64


@pytest.mark.parametrize(("make", "message"), [
    (lambda x, z: DenseBatch.pad([], []), "at least one molecule"),
    (lambda x, z: DenseBatch.pad(x, z[:2]), "4 molecules with positions, 2 with numbers"),
    (lambda x, z: DenseBatch.pad(x, z, atoms=10), r"molecule 1: (.|\n)*at most 10 atoms"),
    (lambda x, z: DenseBatch.pad([x[0]], [z[1]]), r"positions \(3, 3\) for 12 atoms"),
    (lambda x, z: DenseBatch.from_pyg(Data(pos=x[0])), r"PyG graph 0: no 'z'"),
    (lambda x, z: DenseBatch.from_pyg([Data(pos=x[0], z=z[0]), Data(z=z[1])]), r"PyG graph 1: no 'pos'"),
    (lambda x, z: DenseBatch(x[0], z[0], z[0] > 0), r"shapes \(3, 3\), \(3,\) and \(3,\)"),
    (lambda x, z: DenseBatch(x[0][None], z[0][None], z[0][None]), "the mask is torch.int64"),
    (lambda x, z: DenseBatch(x[0][None], 0 * z[0][None], z[0][None] > 0), "molecule 0, atom 0: atomic number 0"),
])  # fmt: skip
def test_faults(parts, make, message):
    with pytest.raises(InputError, match=message):
        make(*parts)
