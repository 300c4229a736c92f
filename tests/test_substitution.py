"""SN2 reactions given without an atom mapping: attack from the back, and a guess whose atoms do not overlap."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from molgen import find_ts
from molgen.data.reactions import Reaction
from molgen.geometry.bonds import bonding_differences, distance_matrix, overlapping
from molgen.geometry.chirality import inverted_centres, substituted_centres
from molgen.io import load_reaction
from molgen.tsgen.condition import prepare
from molgen.units import KCAL_MOL


def guess(reaction: Reaction) -> np.ndarray:
    return prepare([reaction]).guess[0].double().numpy()


def angle(x: np.ndarray, a: int, b: int, c: int) -> float:
    u, v = x[a] - x[b], x[c] - x[b]
    return float(np.degrees(np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))))


@pytest.mark.parametrize(
    ("smiles", "entering", "carbon", "leaving"),
    [
        ("[Cl-].CBr>>ClC.[Br-]", 0, 1, 2),
        ("[F-].CCl>>FC.[Cl-]", 0, 1, 2),
        ("[OH-].CBr>>OC.[Br-]", 0, 1, 2),
        ("[C-]#N.CBr>>CC#N.[Br-]", 0, 2, 3),
    ],
)
def test_the_nucleophile_comes_from_the_back(smiles: str, entering: int, carbon: int, leaving: int) -> None:
    reaction, _ = load_reaction(smiles=smiles)
    x = guess(reaction)
    assert not overlapping(reaction.numbers, x)
    assert angle(x, entering, carbon, leaving) > 150


def test_an_sn2_is_found_from_plain_smiles() -> None:
    result = find_ts(smiles="[Cl-].CBr>>ClC.[Br-]", samples=1, lower=False, correction="none")
    assert result.verified and result.gradient_calls < 100


def test_a_frontside_mapping_that_is_insisted_on_gives_a_guess_without_overlap() -> None:
    reaction, _ = load_reaction(smiles="[Cl-].CBr>>ClC.[Br-]")
    product = reaction.product.copy()
    product[[3, 4]] = product[[4, 3]]
    front = replace(reaction, product=product)
    assert not overlapping(front.numbers, guess(front))
    assert distance_matrix(guess(front))[0, 2] > 1.5
    # and alone in its batch or not, a reaction that was fine is embedded as it was
    assert prepare([front, reaction]).guess[1].numpy() == pytest.approx(guess(reaction), abs=1e-4)


def test_substituted_centres_names_what_stays_leaves_and_enters() -> None:
    reaction, _ = load_reaction(smiles="[Cl-].CBr>>ClC.[Br-]")
    bonds = [np.zeros((6, 6), bool) for _ in range(2)]
    for matrix, halogen in zip(bonds, (2, 0), strict=True):
        for k in (halogen, 3, 4, 5):
            matrix[1, k] = matrix[k, 1] = True
    corners = substituted_centres(*bonds)
    assert corners.tolist() == [[3, 4, 5, 2, 0]]
    turned = inverted_centres(reaction.reactant, reaction.product, corners[:, :4], corners[:, [0, 1, 2, 4]])
    assert turned.tolist() == [True]


def test_the_verdict_is_that_of_the_path_that_is_written(tmp_path: Path) -> None:
    """Hydroxide and fluoromethane: both sides first stop at a complex of the reactant, one goes on to the product."""
    found = find_ts(smiles="[OH-].CF>>CO.[F-]", samples=2, out=tmp_path / "out")
    ends = read(tmp_path / "out" / "path.xyz", index="0"), read(tmp_path / "out" / "path.xyz", index="-1")
    numbers, sides = found.reaction.numbers, (found.reaction.reactant, found.reaction.product)
    same = [not bonding_differences(numbers, end.positions, side) for end, side in zip(ends, sides, strict=True)]
    assert same == [True, True] and found.best.verdict == "intended", found.best.reason
    heights = found.best.barrier_forward_kcal, found.best.barrier_reverse_kcal
    energies = found.best.path_energies
    assert energies is not None and found.best.ts_index is not None
    top = energies[found.best.ts_index]
    assert heights == pytest.approx(((top - energies[0]) / KCAL_MOL, (top - energies[-1]) / KCAL_MOL))
