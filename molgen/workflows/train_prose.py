"""What `molgen train prose` learns from and validates by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from molgen.data.md import MDSet, is_held_out, load_md, md_files, read_sequences
from molgen.data.peptide import Peptide, build_peptide, plain_sequence
from molgen.errors import CalculatorError, InputError, MolgenError
from molgen.pool import Died, WorkerPool, cores
from molgen.prose.frames import Frames
from molgen.prose.generate import propose
from molgen.prose.layout import Layout
from molgen.prose.model import ProseFlow
from molgen.reweight.importance import normalised, truncate
from molgen.rng import generator, sample_seed
from molgen.units import KB
from molgen.words import counted
from molgen.workflows.finetune import FinetuneSettings

JOBS_A_PROCESS = 20  # below, starting the process takes longer than its work
OWN = 4  # stream of random numbers beside those of molgen.workflows.peptide: what is sampled later must be new noise
LEAST_SHARE = 1e-3  # of the mean share: what is picked more rarely is left out


@dataclass(frozen=True)
class TrainingData:
    """Frames to learn from and to validate by; sequences left out, because excluded or without a usable frame."""

    train: list[Frames]
    val: list[Frames]
    excluded: list[str]
    unusable: list[str]


def load_training_data(
    paths: Sequence[Path],
    *,
    exclude: Path | None = None,
    val: Collection[str] = (),
    val_share: float = 0.05,
    seed: int = 0,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TrainingData:
    """Read molecular dynamics and set some aside.

    Args:
        paths: npz files, see :func:`molgen.data.md.load_md`, or folders of them.
        exclude: list of sequences never to learn from or validate by, nor any that contains one of three or more
            residues.
        val: sequences to validate by; or, if there are none,
        val_share: this share of the sequences, drawn with `seed`; of a single sequence, the last of its frames.
        progress: called with the number of files made ready and of all.

    Raises:
        InputError: no such file, a damaged one, an unknown or excluded sequence in `val`, or nothing to learn from.
    """
    if not 0 < val_share < 1:
        raise InputError(f"{val_share:g} is no share", where="--val-share", expected="between 0 and 1, such as 0.05")
    held = read_sequences(exclude) if exclude is not None else ()
    items = [load_md(path) for path in md_files(paths)]
    excluded = sorted({item.sequence for item in items if is_held_out(item.sequence, held)})
    items = [item for item in items if item.sequence not in excluded]
    if excluded:
        log(f"{counted(len(excluded), 'sequence')} excluded: {', '.join(excluded)}")
    train, chosen = _split(items, val, val_share, seed, excluded)
    parts: list[list[Frames]] = [[], []]
    unusable = []
    items = [*train, *chosen]
    for k, (item, frames) in enumerate(
        zip(items, _made(Frames.of_md, [i.peptide for i in items], items, progress), strict=True)
    ):
        count = item.energies.size
        if len(frames) < count:
            log(f"{item.sequence}: {count - len(frames)} of {count} frames lie beyond the limits or lack an energy")
        coldest = frames.at(frames.temperatures()[0]) if len(frames) else []
        validates = k >= len(train)  # by data: not by forms whose share the starts decided
        if len(coldest) > 1 and not (validates and frames.own[coldest].all()):
            parts[validates].append(frames)
        else:
            unusable.append(item.sequence)
    for part, what in zip(parts, ("learn from", "validate by"), strict=True):
        if not part:
            raise InputError(
                f"no frames to {what}",
                where="--data",
                expected="two or more of L amino acids at the lowest temperature, with energies",
                remedy="give other files",
            )
    return TrainingData(parts[0], joined(parts[1]), excluded, sorted(set(unusable)))


def load_own_data(
    flow: ProseFlow,
    path: Path,
    samples: int,
    temperature: float,
    *,
    exclude: Path | None = None,
    val: Collection[str] = (),
    seed: int = 0,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Frames]:
    """Samples of `flow` with their energies, to learn from beside molecular dynamics or without.

    Args:
        path: list of sequences, one a line. samples: of each. temperature: K.
        exclude: see `load_training_data`. val: sequences that validate, left out as well.

    Raises:
        InputError: no such list, a line that is no sequence, or none of use.
    """
    held = (*(read_sequences(exclude) if exclude is not None else ()), *val)
    sequences = read_sequences(path)
    chosen = [sequence for sequence in sequences if not is_held_out(sequence, held)]
    if len(chosen) < len(sequences):
        log(f"{len(sequences) - len(chosen)} of {counted(len(sequences), 'sequence')} of {path} excluded")
    peptides = [build_peptide(sequence) for sequence in chosen]
    make = partial(own_frames, flow, n=samples, temperature=temperature, seed=seed)
    drawn = _made(make, peptides, peptides, progress)
    found = [frames for frames in drawn if len(frames) > 1]
    if not found:
        raise InputError(
            "no sequence to learn from by energies", where=str(path), expected="sequences that are not excluded"
        )
    log(f"{counted(sum(map(len, found)), 'sample')} of {counted(len(found), 'sequence')}")
    return found


def joined(parts: Sequence[Frames]) -> list[Frames]:
    """One set of frames a peptide: what is learned of it in one step then says how its forms stand to each other."""
    groups: dict[tuple[str, str | None], list[Frames]] = {}
    for frames in parts:
        groups.setdefault((frames.layout.peptide.sequence, frames.layout.peptide.cap), []).append(frames)
    return [group[0] if len(group) == 1 else Frames.join(group) for group in groups.values()]


def own_frames(flow: ProseFlow, peptide: Peptide, n: int, temperature: float, seed: int) -> Frames:
    """Up to n samples of the flow with their energies, to be learned from by the energy spread alone.

    They are picked by the root of their weights: alike, training would go into proposals that weigh nothing.
    """
    flow.eval()
    layout = Layout.of(peptide)
    x, log_q = propose(flow, layout, n, temperature, sample_seed(seed, OWN))
    energies = peptide.potential().energy(x)
    with np.errstate(invalid="ignore"):
        log_w = -energies / (KB * temperature) - log_q
    share = n * normalised(FinetuneSettings.tilt * truncate(np.where(np.isfinite(log_w), log_w, -np.inf)))
    energies[share < LEAST_SHARE] = np.nan
    return Frames.of(layout, x, energies, np.full(n, temperature), share, np.ones(n, dtype=bool))


def _made(
    make: Callable[[Any], Frames],
    peptides: Sequence[Peptide],
    jobs: Sequence[Any],
    progress: Callable[[int, int], None],
) -> list[Frames]:
    """`make` of every job, one a peptide, in order; by several processes where there are many."""
    workers, found = min(cores(), len(jobs) // JOBS_A_PROCESS), {}
    if workers < 2:
        for k, job in enumerate(jobs):
            found[k] = make(job)
            progress(k + 1, len(jobs))
    else:
        with closing(WorkerPool(partial(_Maker, make), workers, "training data")) as pool:
            for (k, _), answer in pool.run(enumerate(jobs)):
                if isinstance(answer, MolgenError):
                    raise answer
                if isinstance(answer, Died):
                    raise CalculatorError(answer.reason, where="training data", remedy="see the messages above")
                found[k] = Frames(Layout.of(peptides[k]), *map(torch.from_numpy, answer))
                progress(len(found), len(jobs))
    return [found[k] for k in range(len(jobs))]


@dataclass(frozen=True)
class _Maker:
    """A worker's job; frames as arrays without their layout, since tensors travel as open files, hundreds a peptide."""

    make: Callable[[Any], Frames]

    def __call__(self, number: int, job: Any) -> list[np.ndarray] | MolgenError:
        try:
            frames = self.make(job)
            return [getattr(frames, field.name).numpy() for field in fields(frames) if field.name != "layout"]
        except MolgenError as error:
            return error


def _split(
    items: Sequence[MDSet], val: Collection[str], share: float, seed: int, excluded: Collection[str]
) -> tuple[list[MDSet], list[MDSet]]:
    sequences, val = sorted({item.sequence for item in items}), {plain_sequence(sequence) for sequence in val}
    if missing := sorted(set(val) - set(sequences)):
        why = "is excluded" if missing[0] in excluded else "is not in the data"
        raise InputError(f"{missing[0]} {why}", where="--val", expected=f"some of {', '.join(sequences) or 'nothing'}")
    if not sequences or len(sequences) == len(set(val)):
        what = "is set aside to validate by" if sequences else "is excluded"
        raise InputError(f"nothing to learn from: all that there is {what}", where="--data", remedy="give more data")
    if len(sequences) == 1:
        counts = [item.energies.shape[1] for item in items]
        cuts = [max(1, min(round(count * (1 - share)), count - 2)) for count in counts]
        return (
            [_part(item, slice(0, cut)) for item, cut in zip(items, cuts, strict=True)],
            [_part(item, slice(cut, None)) for item, cut in zip(items, cuts, strict=True)],
        )
    if not val:
        order = generator(seed, len(sequences)).permutation(len(sequences))
        val = {sequences[k] for k in order[: max(1, round(share * len(sequences)))]}
    return [item for item in items if item.sequence not in val], [item for item in items if item.sequence in val]


def _part(item: MDSet, frames: slice) -> MDSet:
    return replace(item, positions=item.positions[:, frames], energies=item.energies[:, frames])
