"""Faults of a set of reactions that its numbers alone do not show: other units, atoms in another order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from molgen.data.reactions import Reaction
from molgen.errors import InputError
from molgen.geometry.bonds import TOO_CLOSE, bond_graph, distance_matrix

MOST_CHANGES = 8  # bonds; the published and the shipped set have none that changes more than seven


def check_geometries(
    reactions: Sequence[Reaction], path: str | os.PathLike, warn: Callable[[str], None] = lambda message: None
) -> None:
    """Refuse what is no structure in Angstrom, and `warn` of reactions whose sides have hardly a bond in common.

    Args:
        reactions: those without a transition state are looked at, too. path: of the set, for messages.

    Raises:
        InputError: two atoms of a transition state upon each other, or no bond on either side; names the reaction.
    """
    odd = []
    for reaction in reactions:
        where = f"{path}, reaction {reaction.name}"
        if reaction.ts is not None:
            apart = distance_matrix(reaction.ts)[np.triu_indices(len(reaction), 1)]
            if (apart < TOO_CLOSE).any():
                raise InputError(
                    f"two atoms of the transition state within {TOO_CLOSE} Angstrom", where=where,
                    expected="a structure in Angstrom", remedy="remove it",
                )  # fmt: skip
        before, after = (bond_graph(reaction.numbers, x) for x in (reaction.reactant, reaction.product))
        if not (before.any() or after.any()):
            raise InputError(
                "no two atoms are bonded on either side", where=where, expected="coordinates in Angstrom",
                remedy="convert them if they are in Bohr, or remove it",
            )  # fmt: skip
        if (before ^ after).sum() > 2 * MOST_CHANGES:
            odd.append(reaction.name)
    if odd:
        warn(
            f"{path}: {len(odd)} of {len(reactions)} reactions change more than {MOST_CHANGES} bonds, such as reaction "
            f"{odd[0]}: are the atoms of reactant and product in one order?"
        )
