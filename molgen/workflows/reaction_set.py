"""The verified reactions of a run, in order of attempts: duplicates left out, split, and written as one npz."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from molgen.data.duplicates import KnownSaddles
from molgen.data.elementary import step_kind, step_text
from molgen.data.exclusion import reaction_key, reaction_keys
from molgen.data.mapped_smiles import reaction_smiles
from molgen.data.reactions import Reaction, save_npz
from molgen.geometry.bonds import bond_graph, compare_bonds, fragments
from molgen.units import kcal
from molgen.workflows.reaction_attempt import VERIFIED

VAL_SHARE = 20  # one reaction in so many is for validation


class ReactionSet:
    """Collects the records of attempts; what it holds depends on them and their order alone.

    Attributes:
        outcomes: how many attempts ended how; a verified one that was known already counts as "duplicate".
        records: of the reactions kept.
    """

    def __init__(self, level: str, excluded: frozenset[str] = frozenset()):
        self.level, self.excluded = level, excluded
        self.outcomes: Counter[str] = Counter()
        self.records: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._known = KnownSaddles()

    def add(self, record: dict[str, Any]) -> str:
        """Take in the record of an attempt; how it counts."""
        outcome = record["outcome"]
        if outcome in VERIFIED:
            z = np.array(record["z"])
            r, ts, p = (np.array(record[side], dtype=float) for side in ("r", "ts", "p"))
            if reaction_keys(z, r, p, record["charge"]) & self.excluded:
                outcome = "excluded"  # the attempt has seen to it; but nothing may pass, an edited journal neither
            else:
                graphs = bond_graph(z, r), bond_graph(z, p)
                key = reaction_key(z, *graphs, record["charge"])
                if self._known.add(key, record["energies"][1], z, ts, *graphs):
                    self.records.append(record)
                    self._keys.append(key)
                else:
                    outcome = "duplicate"
        self.outcomes[outcome] += 1
        return outcome

    def __len__(self) -> int:
        """Number of reactions kept."""
        return len(self.records)

    @property
    def reactions(self) -> int:
        """Number of different reactions by connectivity among them."""
        return self._known.reactions

    def write(self, path: Path) -> None:
        """Write the npz (:mod:`molgen.data.reactions`), with energies and provenance as further columns.

        `step` and `kind` tell how the bonds of r and p differ, `proposed` the step that the attempt began with,
        `verdict` whether the saddle joins the ends it was meant to.
        """
        columns: dict[str, list] = {
            "smiles": [], "barrier_kcal": [], "step": [], "kind": [], "proposed": [r["step"] for r in self.records],
            "verdict": [r["outcome"] for r in self.records],
        }  # fmt: skip
        for key in ("energies", "imaginary_cm", "source", "guess", "seed"):
            columns[key] = [record[key] for record in self.records]
        reactions = [self._reaction(record) for record in self.records]
        for reaction, record in zip(reactions, self.records, strict=True):
            z = reaction.numbers
            before, after = (bond_graph(z, x) for x in (reaction.reactant, reaction.product))
            step = compare_bonds(before, after)
            columns["step"].append(step_text(z, step))
            columns["kind"].append(step_kind(z, before, step))
            columns["smiles"].append(reaction_smiles(z, before, after, reaction.charge))
            columns["barrier_kcal"].append(kcal(record["energies"][1] - record["energies"][0]))
        save_npz(path, reactions, splits_by(self._keys), columns)

    def _reaction(self, record: dict[str, Any]) -> Reaction:
        z = np.array(record["z"])
        r, ts, p = (np.array(record[side], dtype=float) for side in ("r", "ts", "p"))
        part_p, part_r = (fragments(bond_graph(z, x)) for x in (p, r))
        name = str(record["attempt"])
        return Reaction(z, r, p, part_p, part_r, record["charge"], record["spin"], name, ts, self.level)


def splits_by(keys: list[str]) -> list[str]:
    """ "train", or "val" for one reaction in twenty: by its connectivity, so that none is in both."""
    drawn = {key: int(hashlib.sha256(key.encode()).hexdigest(), 16) for key in keys}
    val = {key for key, number in drawn.items() if number % VAL_SHARE == 0}
    if not val and len(drawn) > 1:
        val = {min(drawn, key=lambda key: drawn[key])}
    return ["val" if key in val else "train" for key in keys]
