"""Reaction SMILES in which some atoms bear a map number: those are kept, the others mapped around them."""

import numpy as np
import pytest

from molgen import find_ts
from molgen.errors import InputError
from molgen.geometry.bonds import bond_graph, compare_bonds
from molgen.io import load_reaction


def changes(smiles: str):
    reaction, _ = load_reaction(smiles=smiles)
    bonds = (bond_graph(reaction.numbers, x) for x in (reaction.reactant, reaction.product))
    return reaction, compare_bonds(*bonds)


def test_two_labels_ask_for_the_other_shift() -> None:
    """Allyl vinyl ether: [3,3] without labels, [1,3] where they say so."""
    _, plain = changes("C=COCC=C>>O=CCCC=C")
    _, asked = changes("[CH2:1]=CO[CH2:2]C=C>>O=C[CH2:1][CH2:2]C=C")
    assert (2, 3) in plain.broken and (0, 5) in plain.formed
    assert (2, 3) in asked.broken and (0, 3) in asked.formed


def test_one_label_makes_a_degenerate_reaction_one() -> None:
    """Propene into itself: the methyl carbon becomes the methylene."""
    reaction, found = changes("[CH3:1]C=C>>[CH2:1]=CC")
    assert found.count == 2
    hydrogens = [
        int((bond_graph(reaction.numbers, x)[0][reaction.numbers == 1]).sum())
        for x in (reaction.reactant, reaction.product)
    ]
    assert hydrogens == [3, 2]


def test_a_labelled_hydrogen_is_the_one_that_moves() -> None:
    reaction, found = changes("[CH2:1]=[CH:2][O:3][H:4]>>[CH2:1]([H:4])[CH:2]=[O:3]")
    labelled = int(np.flatnonzero(bond_graph(reaction.numbers, reaction.reactant)[2] & (reaction.numbers == 1))[0])
    assert (2, labelled) in found.broken and (0, labelled) in found.formed


@pytest.mark.parametrize(
    ("smiles", "text"),
    [
        ("[CH3:1]C=C>>[CH2:2]=CC", "atom-map number 1 is on one side only"),
        ("[CH3:1]C=O>>[CH2]=C[OH:1]", "an atom-map number changes its element"),
    ],
)
def test_labels_that_cannot_be_kept_are_refused(smiles: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        load_reaction(smiles=smiles)


def test_two_atoms_are_a_reaction_too() -> None:
    assert find_ts(smiles="[H][H]>>[H].[H]", samples=1, refine=False).guesses[0].positions.shape == (2, 3)
