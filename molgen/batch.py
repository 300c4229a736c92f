"""Dense batches of molecules, and their exchange with torch-geometric.

Molecules here have 3 to about 150 atoms, so all pairs of a padded batch beat neighbour lists; PyG's flat `Data` and
`Batch` are for the border, where users and their data loaders are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from molgen.errors import InputError

if TYPE_CHECKING:
    from torch_geometric.data import Batch, Data


@dataclass(frozen=True)
class DenseBatch:
    """B molecules of up to N atoms.

    Attributes:
        positions: (B, N, 3) floating point, Angstrom; zero where padded.
        numbers: (B, N) int64 atomic numbers; 0 where padded.
        mask: (B, N) bool, true for real atoms.

    Raises:
        InputError: the shapes or dtypes do not fit together, or a real atom has no atomic number.
    """

    positions: Tensor
    numbers: Tensor
    mask: Tensor

    def __post_init__(self):
        shape = tuple(self.numbers.shape)
        if len(shape) != 2 or tuple(self.mask.shape) != shape or tuple(self.positions.shape) != (*shape, 3):
            found = [tuple(x.shape) for x in (self.positions, self.numbers, self.mask)]
            raise InputError(
                f"positions, numbers and mask have shapes {found[0]}, {found[1]} and {found[2]}",
                where="DenseBatch",
                expected="(B, N, 3), (B, N) and (B, N)",
            )
        if self.mask.dtype != torch.bool or self.numbers.dtype != torch.int64:
            raise InputError(
                f"numbers are {self.numbers.dtype} and the mask is {self.mask.dtype}",
                where="DenseBatch",
                expected="torch.int64 and torch.bool",
            )
        for molecule, atom in (self.mask & (self.numbers < 1)).nonzero()[:1].tolist():
            raise InputError(
                f"atomic number {int(self.numbers[molecule, atom])}",
                where=f"DenseBatch, molecule {molecule}, atom {atom}",
                expected="1 or more for every atom the mask calls real",
            )

    @classmethod
    def pad(cls, positions: Sequence[Tensor], numbers: Sequence[Tensor], atoms: int | None = None) -> DenseBatch:
        """Molecules of different sizes side by side.

        Args:
            positions: B tensors (n_i, 3), Angstrom. numbers: B tensors (n_i,).
            atoms: width N to pad to; default the largest molecule.

        Raises:
            InputError: no molecules, a molecule's positions and numbers disagree, or one is larger than `atoms`.
        """
        if not positions or len(positions) != len(numbers):
            raise InputError(
                f"{len(positions)} molecules with positions, {len(numbers)} with numbers",
                where="DenseBatch.pad",
                expected="at least one molecule, and as many of each",
            )
        width = max(len(z) for z in numbers) if atoms is None else atoms
        first = positions[0]
        x = first.new_zeros(len(positions), width, 3)
        z = torch.zeros(len(positions), width, dtype=torch.int64, device=first.device)
        for i, (xi, zi) in enumerate(zip(positions, numbers, strict=True)):
            n = len(zi)
            if tuple(xi.shape) != (n, 3) or n > width:
                raise InputError(
                    f"positions {tuple(xi.shape)} for {n} atoms",
                    where=f"DenseBatch.pad, molecule {i}",
                    expected=f"({n}, 3), and at most {width} atoms",
                )
            x[i, :n], z[i, :n] = xi, zi
        return cls(x, z, z > 0)

    @classmethod
    def from_pyg(cls, data: Data | Batch | Sequence[Data]) -> DenseBatch:
        """From PyG graphs with `pos` (n, 3) in Angstrom and atomic numbers `z` (n,); edges are not read.

        Args:
            data: one graph, a PyG batch, or a list of graphs.

        Raises:
            InputError: a graph has no `pos` or no `z`.
        """
        from torch_geometric.data import Batch

        if isinstance(data, Sequence):
            graphs = list(data)
        else:
            graphs = data.to_data_list() if isinstance(data, Batch) else [data]
        fields: dict[str, list[Tensor]] = {"pos": [], "z": []}
        for i, graph in enumerate(graphs):
            for name, tensors in fields.items():
                tensor = getattr(graph, name, None)
                if tensor is None:
                    raise InputError(
                        f"no '{name}'",
                        where=f"PyG graph {i}",
                        expected="'pos' (n, 3) in Angstrom and 'z' (n,) atomic numbers",
                    )
                tensors.append(tensor)
        return cls.pad(fields["pos"], fields["z"])

    def to_pyg(self) -> Batch:
        """A PyG batch with `pos`, `z` and no edges; padding is left out."""
        from torch_geometric.data import Batch, Data

        return Batch.from_data_list([Data(pos=x, z=z, num_nodes=len(z)) for x, z in self.molecules()])

    def molecules(self) -> list[tuple[Tensor, Tensor]]:
        """Positions (n_i, 3) and numbers (n_i,) of each molecule, without padding."""
        return [(x[m], z[m]) for x, z, m in zip(self.positions, self.numbers, self.mask, strict=True)]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DenseBatch:
        """On another device; `dtype` applies to the positions."""
        positions = self.positions.to(device=device, dtype=dtype)
        return DenseBatch(positions, self.numbers.to(device), self.mask.to(device))

    def __len__(self) -> int:
        return len(self.numbers)
