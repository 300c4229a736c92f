"""What `molgen ts` leaves in its output folder."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from ase import Atoms

from molgen.geometry.align import superpose
from molgen.geometry.bonds import bond_graph, fragments
from molgen.io import write_extxyz
from molgen.report.plots import barrier_profile
from molgen.run import Run
from molgen.structures import formula
from molgen.units import kcal
from molgen.workflows.ts_result import Candidate, TSResult

INTERMEDIATE = "intermediate.xyz"
# by the end that is known, what the ends of a path are called
_STEPS = {
    "": ("one side", "other side"), "reactant": ("reactant", "intermediate"), "product": ("intermediate", "product"),
}  # fmt: skip


def write_result(run: Run, result: TSResult, final: bool) -> None:
    """Write guesses.xyz, ts.xyz (ranked), path.xyz of the best, ts_corrected.xyz; `final`: barrier.png, reactant.xyz
    and product.xyz in the same order of atoms, intermediate.xyz where only the first or the last step was found,
    summary.json.

    Called after every candidate, so that an interrupted run keeps what it has.
    """
    write_extxyz(run.path("guesses.xyz"), result.guesses)
    run.results = [candidate.summary() for candidate in result.candidates]
    run.record(
        checkpoint_hash=result.checkpoint_hash,
        energy_calls=result.gradient_calls,
        validity=dict(Counter(c.verdict for c in result.candidates)),
        rejections=dict(result.rejections),
        notes=result.notes,
        barrierless_side=result.barrierless_side,
        barrierless_kcal=result.barrierless_kcal,
        unstable=result.unstable,
        level=result.level,
        thermochemistry=result.thermochemistry.summary() if result.thermochemistry else None,
    )
    if not result.candidates:
        return
    write_extxyz(run.path("ts.xyz"), [candidate.atoms for candidate in result.candidates])
    if result.corrected is not None:
        write_extxyz(run.path("ts_corrected.xyz"), [result.corrected.atoms])
        run.record(corrected=result.corrected.summary())
    best = result.best
    if best.path_positions is not None and best.path_energies is not None:
        write_extxyz(run.path("path.xyz"), path_frames(result, best))
        if final:
            run.write_bytes("barrier.png", profile(result, best))
    if final:
        for name, x in (("reactant", result.reaction.reactant), ("product", result.reaction.product)):
            write_extxyz(run.path(f"{name}.xyz"), [Atoms(result.reaction.numbers, x)])
        if (intermediate := best.intermediate) is not None:
            write_extxyz(run.path(INTERMEDIATE), [intermediate])
        run.finish(result.status)


def path_frames(result: TSResult, candidate: Candidate) -> list[Atoms]:
    """The path as frames from the reactant's end to the product's, energies in eV and relative kcal/mol in `info`."""
    assert candidate.path_positions is not None and candidate.path_energies is not None
    frames = []
    for x, energy in zip(
        _aligned(candidate.path_positions, candidate.atoms.positions), candidate.path_energies, strict=True
    ):
        frame = Atoms(result.reaction.numbers, x)
        frame.info = {"energy": float(energy), "relative_kcal": round(kcal(energy - candidate.path_energies[0]), 4)}
        frames.append(frame)
    return frames


def profile(result: TSResult, candidate: Candidate) -> bytes:
    """The barrier picture: energy along the candidate's path, kcal/mol above its first frame."""
    assert candidate.path_positions is not None and candidate.path_energies is not None
    path = candidate.path_positions
    length = np.concatenate([[0.0], np.cumsum(np.sqrt(np.square(np.diff(path, axis=0)).sum((1, 2))))])
    energies = np.array([kcal(e - candidate.path_energies[0]) for e in candidate.path_energies])
    z = result.reaction.numbers
    ends = [_name(z, path[0]), _name(z, path[-1])]
    name = (result.reaction.name or "rearrangement").replace("->", "→")
    title = f"{ends[0]} → {ends[1]}" if ends[0] != ends[1] else f"{ends[0]}: {name}"
    title += f" (charge {result.reaction.charge:+d})" if result.reaction.charge else ""
    mode = candidate.imaginary_frequency_cm
    parts = [candidate.verdict.replace("_", " ")]
    parts += [] if mode is None else [f"imaginary mode {abs(mode):.0f}i cm⁻¹"]
    parts += ["other stereoisomers than given"] if candidate.stereo else []
    parts += [f"{' and '.join(candidate.unstable)} not as given"] if candidate.unstable else []
    # only the intended saddle has this reactant and this product at its ends
    labels = ("reactant", "product") if candidate.verdict == "intended" else _STEPS[candidate.known]
    return barrier_profile(
        length, energies, candidate.ts_index or 0, title=title, subtitle=", ".join(parts), labels=labels
    )


def _name(numbers: np.ndarray, positions: np.ndarray) -> str:
    """Formulae of the fragments of a geometry, such as "C2H4 + C4H6"."""
    part = fragments(bond_graph(numbers, positions))
    return " + ".join(sorted(formula(numbers[part == k]) for k in range(int(part.max()) + 1)))


def _aligned(path: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Frames (M, N, 3) of a path, each superposed on `onto` (N, 3), so that a viewer does not see them tumble."""
    target = torch.from_numpy(np.asarray(onto, dtype=float)).expand(len(path), -1, -1)
    return superpose(torch.from_numpy(np.asarray(path, dtype=float)), target).numpy()
