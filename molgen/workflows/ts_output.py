"""What `molgen ts` leaves in its output folder."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase import Atoms

from molgen.geometry.align import chained
from molgen.geometry.bonds import bond_graph, fragments
from molgen.io import write_extxyz
from molgen.report.plots import barrier_profile
from molgen.run import Run
from molgen.saddle.molden import molden
from molgen.structures import formula
from molgen.units import kcal
from molgen.workflows.ts_mechanism import Mechanism
from molgen.workflows.ts_result import Candidate, TSResult, atoms_of

INTERMEDIATE = "intermediate.xyz"
LEAP = 2.0  # Angstrom
# by the end that is known, what the ends of a path are called
_STEPS = {
    "": ("one side", "other side"), "reactant": ("reactant", "intermediate"), "product": ("intermediate", "product"),
}  # fmt: skip


def write_result(run: Run, result: TSResult, final: bool) -> None:
    """Write guesses.xyz, ts.xyz (ranked), path.xyz and modes.molden of the best, ts_corrected.xyz; `final`:
    barrier.png, reactant.xyz and product.xyz in the same order of atoms, intermediate.xyz where the first or the last
    step of several was found, mechanism.xyz and mechanism.png where the search went on from there, summary.json.

    Called after every candidate, so that an interrupted run keeps what it has.
    """
    several = result.mechanism is not None and result.mechanism.complete  # figures of one saddle alone are left out
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
        thermochemistry=result.thermochemistry.summary() if result.thermochemistry and not several else None,
    )
    if not result.candidates:
        return
    write_extxyz(run.path("ts.xyz"), [candidate.atoms for candidate in result.candidates])
    run.record(
        corrected=result.corrected.summary() if result.corrected else None,
        barriers_from_lowest_kcal=result.barriers_from_lowest_kcal,
    )
    if frames := corrected_frames(result):
        write_extxyz(run.path("ts_corrected.xyz"), frames)
    best = result.best
    if best.path_positions is not None and best.path_energies is not None:
        write_extxyz(run.path("path.xyz"), path_frames(result, best))
        if best.modes is not None:
            run.write_text("modes.molden", molden(result.reaction.numbers, best.atoms.positions, best.modes))
        if final:
            run.write_bytes("barrier.png", profile(result, best))
    if final:
        for name, x in (("reactant", result.reaction.reactant), ("product", result.reaction.product)):
            write_extxyz(run.path(f"{name}.xyz"), [atoms_of(result.reaction, x)])
        for side, conformer in result.conformers.items():
            lowest = atoms_of(result.reaction, conformer.positions)
            lowest.info["energy"] = conformer.energy
            write_extxyz(run.path(f"{side}_lowest.xyz"), [lowest])
        if (intermediate := best.intermediate) is not None:
            write_extxyz(run.path(INTERMEDIATE), [intermediate])
        if result.mechanism is not None:
            write_extxyz(run.path("mechanism.xyz"), mechanism_frames(result.mechanism))
            run.write_bytes("mechanism.png", mechanism_profile(result.mechanism))
            run.record(mechanism=result.mechanism.summary())
        run.finish(result.status)


def corrected_frames(result: TSResult) -> list[Atoms]:
    """The corrected saddle, or those of all steps of a mechanism, with `step` (from 1) in `info`."""
    if result.corrected is not None:
        return [result.corrected.atoms]
    frames = []
    for k, step in enumerate(result.mechanism.steps if result.mechanism is not None else [], start=1):
        if step.corrected is not None:
            frames.append(step.corrected.atoms)
            frames[-1].info["step"] = k
    return frames


def path_frames(result: TSResult, candidate: Candidate) -> list[Atoms]:
    """The path as frames from the reactant's end to the product's, energies in eV and relative kcal/mol in `info`."""
    assert candidate.path_positions is not None and candidate.path_energies is not None
    frames = []
    placed = chained(candidate.path_positions, candidate.ts_index or 0)
    for x, energy in zip(placed, candidate.path_energies, strict=True):
        frame = atoms_of(result.reaction, x)
        frame.info |= {"energy": float(energy), "relative_kcal": round(kcal(energy - candidate.path_energies[0]), 4)}
        frames.append(frame)
    return frames


def mechanism_frames(mechanism: Mechanism) -> list[Atoms]:
    """All steps as frames from the reactant to the product; `step` (from 1), `state` where it is an end or a saddle,
    energies in eV where they are known, in `info`."""
    reaction, frames = mechanism.searches[0].reaction, []
    placed = iter(chained(np.concatenate([step.path_positions for step in mechanism.steps])))
    for k, step in enumerate(mechanism.steps, start=1):
        states = {0: step.ends[0], len(step.path_positions) - 1: step.ends[1]}
        states |= {step.saddle.ts_index: "transition state"} if step.saddle and step.saddle.ts_index is not None else {}
        for at, energy in enumerate(step.path_energies):
            frame = atoms_of(reaction, next(placed))
            frame.info |= {"step": k} | ({"state": states[at]} if at in states else {})
            frame.info |= {"energy": float(energy)} if np.isfinite(energy) else {}
            frames.append(frame)
    return frames


def mechanism_profile(mechanism: Mechanism) -> bytes:
    """The picture of all steps that are known: energies along their paths, kcal/mol above the first."""
    steps = [step for step in mechanism.steps if step.search is not None]
    energies = np.concatenate([step.path_energies for step in steps])
    first = np.cumsum([0, *(len(step.path_positions) for step in steps)])
    tops = [int(at) + (step.saddle.ts_index or 0) for at, step in zip(first, steps, strict=False) if step.saddle]
    between = {(int(at) - 1, int(at)): step.ends[0] for at, step in zip(first[1:], steps[1:], strict=False)}
    reaction = mechanism.searches[0].reaction
    ends = [_name(reaction.numbers, x) for x in (reaction.reactant, reaction.product)]
    return barrier_profile(
        _length(np.concatenate([step.path_positions for step in steps])), kcal(energies - energies[0]), tops,
        title=" → ".join(ends) + _charged(reaction.charge), between=between,
        labels=(steps[0].ends[0], steps[-1].ends[1]),
        subtitle=f"{len(mechanism.steps)} steps" + ("" if mechanism.complete else ", one of them unknown"),
    )  # fmt: skip


def profile(result: TSResult, candidate: Candidate) -> bytes:
    """The barrier picture: energy along the candidate's path, kcal/mol above its first frame."""
    assert candidate.path_positions is not None and candidate.path_energies is not None
    path = candidate.path_positions
    length = _length(path)
    energies = np.array([kcal(e - candidate.path_energies[0]) for e in candidate.path_energies])
    z = result.reaction.numbers
    ends = [_name(z, path[0]), _name(z, path[-1])]
    name = (result.reaction.name or "rearrangement").replace("->", "→")
    title = f"{ends[0]} → {ends[1]}" if ends[0] != ends[1] else f"{ends[0]}: {name}"
    title += _charged(result.reaction.charge)
    mode = candidate.imaginary_frequency_cm
    parts = [candidate.verdict.replace("_", " ")]
    parts += [] if mode is None or mode > 0 else [f"imaginary mode {-mode:.0f}i cm⁻¹"]
    parts += ["other stereoisomers than given"] if candidate.stereo else []
    parts += [f"{' and '.join(candidate.unstable)} not as given"] if candidate.unstable else []
    # only the intended saddle has this reactant and this product at its ends
    labels = ("reactant", "product") if candidate.verdict == "intended" else _STEPS[candidate.known]
    return barrier_profile(
        length, energies, candidate.ts_index or 0, title=title, subtitle=", ".join(parts), labels=labels
    )


def _charged(charge: int) -> str:
    return f" (charge {charge:+d})" if charge else ""


def _length(path: np.ndarray) -> np.ndarray:
    """(M,) Angstrom along the frames (M, N, 3) of a path, each superposed on the one before; pieces that come from far
    away count no more than `LEAP`."""
    steps = np.linalg.norm(np.diff(chained(path), axis=0), axis=(1, 2))
    return np.cumsum(np.minimum(np.array([0.0, *steps]), LEAP))


def _name(numbers: np.ndarray, positions: np.ndarray) -> str:
    """Formulae of the fragments of a geometry, such as "C2H4 + C4H6"."""
    part = fragments(bond_graph(numbers, positions))
    return " + ".join(sorted(formula(numbers[part == k]) for k in range(int(part.max()) + 1)))
