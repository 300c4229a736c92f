"""`molgen evaluate prose`: proposals of a peptide flow, weighted by their energies, against molecular dynamics."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molgen.data.md import MDSet, load_md, md_files, peptide_of
from molgen.data.peptide import Peptide, build_peptide, residues_of
from molgen.data.stereochemistry import turned_bonds
from molgen.errors import CalculatorError, InputError
from molgen.prose.evaluate import (
    LAG,
    METRICS,
    POINTS,
    Conformations,
    compare,
    halves,
    log_densities,
    nll_per_dof,
    torsions,
)
from molgen.prose.layout import Layout
from molgen.prose.validity import validate
from molgen.prose.weights import Proposal, load_flow
from molgen.reweight.estimate import autocorrelation_time, weighted_mean
from molgen.reweight.importance import diagnose, drop_top, forward_ess, kish, normalised, psis, verdict
from molgen.run import Progress, Run
from molgen.units import KB
from molgen.words import counted
from molgen.workflows.draws import Draws, Energies, Store, draw

LEAST_FRAMES = 40  # of the reference: two parts of 20


@dataclass(frozen=True, eq=False)
class Case:
    """A peptide to judge the flow on, and its molecular dynamics: no set, one run, or two independent ones."""

    peptide: Peptide
    sets: tuple[MDSet, ...] = ()

    @property
    def name(self) -> str:
        """The sequence, and the caps where there are any."""
        return self.peptide.sequence + (f"_{self.peptide.cap}" if self.peptide.cap else "")

    def frames(self, temperature: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """Positions (F, N, 3) in Angstrom and energies (F,) in eV at `temperature`, of every set that has it.

        Equivalent atoms are named as the flow names them, whatever the file does.
        """
        found, layout = [], Layout.of(self.peptide)
        for md in self.sets:
            if (k := md.at(temperature)) is not None:
                found.append((layout.named(md.positions[k]), np.asarray(md.energies[k], dtype=float)))
        return found


def gather(data: Sequence[str | Path], sequences: Sequence[str] | None = None, cap: str | None = None) -> list[Case]:
    """The peptides of npz files and folders of them, or of `sequences` in their order, with the files' dynamics.

    Args:
        data: MD files (`molgen.data.md`) or folders of them. Two files of one peptide are two independent runs.
        sequences: only these; one without a file has no reference.
        cap: caps of `sequences`.

    Raises:
        InputError: no such file, or one that is no MD file; a sequence that is none; neither data nor sequences; caps
            without sequences.
    """
    wanted = None
    if cap not in (None, "none") and sequences is None:
        raise InputError(
            f"{cap} given without --sequences: the files tell their own caps", where="--cap", remedy="leave it out"
        )
    if sequences is not None:
        wanted = list(dict.fromkeys(build_peptide(sequence, cap) for sequence in sequences))
    named = [path for path in map(Path, data) if not path.is_dir()]
    files = md_files(list(map(Path, data)))
    sets: dict[tuple[str, str | None], list[MDSet]] = {}
    for file in dict.fromkeys(files):
        if wanted is not None and not _holds(file, wanted, file in named):
            continue
        md = load_md(file)
        runs = sets.setdefault((md.sequence, md.cap), [])
        if len(runs) == 2:
            raise InputError(
                f"a third file of {md.sequence}",
                where=str(file),
                expected="one run of a peptide, or two independent ones",
            )
        runs.append(md)
    peptides = wanted if wanted is not None else [build_peptide(*key) for key in sets]
    if not peptides:
        raise InputError("nothing to evaluate", expected="--data with files of molecular dynamics, or --sequences")
    return [Case(peptide, tuple(sets.get((peptide.sequence, peptide.cap), ()))) for peptide in peptides]


def _holds(file: Path, wanted: Sequence[Peptide], named: bool) -> bool:
    """Whether a file is of one of the peptides; one that was not `named`, nor is after one of them, may be no file of
    molecular dynamics at all."""
    try:
        return peptide_of(file) in {(peptide.sequence, peptide.cap) for peptide in wanted}
    except InputError:
        if named or any(peptide.sequence in file.stem for peptide in wanted):
            raise
        return False


def evaluate_prose(
    cases: Sequence[Case],
    run: Run,
    *,
    weights: str | Path | Proposal = "prose",
    samples: int = 10_000,
    temperature: float = 310.0,
    seed: int = 0,
    workers: int | str = "auto",
    platform: str = "auto",
    points: int = POINTS,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Evaluate every case; each finished one is a file in the run, and a resumed run starts after it.

    Args:
        cases: see `gather`. run: receives `<name>.json` a case and the summary.
        weights: shipped weights, a checkpoint folder, or a loaded proposal.
        samples, temperature, seed: of the proposals; K.
        workers, platform: processes ("auto": as many as pay) and OpenMM platform of the energies.
        points: see `molgen.prose.evaluate.compare`.
        report: called with each row as it is finished.

    Returns:
        The summary; `results` holds a row a case (see `evaluate_case`), `means` their means by length.
    """
    proposal = weights if isinstance(weights, Proposal) else load_flow(weights)
    rows, calls = run.results, 0
    run.record(checkpoint_hash=proposal.hash)
    for case in cases:
        file = f"{case.name}.json"
        row: dict[str, Any] | None = _finished(run, file)
        if row is None:
            with Energies(case.peptide, platform, workers) as energies:
                try:
                    row = evaluate_case(
                        case, proposal, energies, samples=samples, temperature=temperature, seed=seed, points=points,
                        progress=progress,
                    )  # fmt: skip
                except CalculatorError as error:
                    row = {"sequence": case.name, "error": str(error)}
            run.write_json(file, row)
        rows.append(row)
        calls += int(row.get("energy_calls", 0))
        run.record(means=means(rows), energy_calls=calls)
        report(row)
    failed = sum("error" in row for row in rows)
    return run.finish("partial" if failed else "ok", rejections={"failed sequences": failed} if failed else None)


def evaluate_case(
    case: Case,
    proposal: Proposal,
    energies: Energies,
    *,
    samples: int = 10_000,
    temperature: float = 310.0,
    seed: int = 0,
    points: int = POINTS,
    reference: tuple[Conformations, Conformations] | None = None,
    lag: int = LAG,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Everything `molgen evaluate prose` says about one peptide, JSON-ready.

    Args:
        reference: for the distances and the mean energy, instead of the dynamics of the case.
        lag: of TICA, frames.

    Returns:
        `sequence, residues, atoms, n, temperature`; `weights` (WeightDiagnostics and the verdict, over all n; beside
        them `ess_top_dropped`, without the largest 0.2 % as Prose reports, biased: for comparison with it alone);
        `proposals` (how many it took to have n that are the molecule) and `redrawn` (the others, by reason);
        `finite_energies` (share of n); `validity` (of the n, see `Validity.summary`); `energy` (means in kT with
        standard errors, reweighted and of the dynamics); `md` (see `_on_frames`) and `metrics` (see
        `molgen.prose.evaluate.compare`), None without dynamics; `notes`; `energy_calls`; `seconds` of each stage.

    Raises:
        CalculatorError: hardly a proposal is the molecule, or no sample has a finite energy.
    """
    peptide, kt = case.peptide, KB * temperature
    layout = Layout.of(peptide)
    drawn = draw(
        proposal.model, layout, energies, samples, temperature, seed, Store(None), case.name, stage=case.name,
        progress=progress,
    )  # fmt: skip
    log_w = drawn.log_weights
    diagnostics, weights = diagnose(log_w), normalised(psis(log_w))
    mean = weighted_mean(drawn.energies / kt, log_w, weights)
    frames = case.frames(temperature)
    row: dict[str, Any] = {
        "sequence": case.name,
        "residues": len(residues_of(peptide.sequence)),
        "atoms": len(peptide),
        "n": samples,
        "temperature": temperature,
        "weights": {**asdict(diagnostics), "verdict": verdict(diagnostics), "ess_top_dropped": kish(drop_top(log_w))},
        "proposals": drawn.proposals,
        "redrawn": drawn.redrawn,
        "finite_energies": float(np.isfinite(drawn.energies).mean()),
        "validity": drawn.validity.summary(weights if weights.any() else None),
        "energy": {"reweighted": [mean.value, mean.error], "md": None},
        "md": None,
        "metrics": None,
        "notes": _notes(case, proposal, temperature, frames, given=reference is not None),
        "energy_calls": drawn.calls,
        "seconds": {stage: round(seconds, 3) for stage, seconds in drawn.seconds.items()},
    }
    own = _reference(peptide, frames)
    reference = reference or own
    if reference is not None:
        progress(f"{case.name}: comparing", 0, 1)
        begin = time.perf_counter()
        row["energy"]["md"] = _md_energy(reference, kt)
        if own is not None:
            row["md"] = _on_frames(proposal, drawn, layout, energies, frames, diagnostics.log_z, diagnostics.ess)
            row["energy_calls"] += row["md"]["frames"]
        sample = Conformations(torsions(peptide, drawn.positions), drawn.energies, weights)
        row["metrics"] = compare(sample, reference, temperature, points=points, lag=lag)
        row["seconds"]["comparing"] = round(time.perf_counter() - begin, 3)
    return row


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over the sequences of each length: {"2": {"sequences", "ess", "ess_psis", "khat_max", metrics, ...}}."""
    out = {}
    for length in sorted({row["residues"] for row in rows if "error" not in row}):
        some = [row for row in rows if row.get("residues") == length]
        figures: dict[str, Any] = {"sequences": len(some)}
        for key in ("ess", "ess_psis", "ess_top_dropped"):
            figures[key] = float(np.mean([row["weights"][key] for row in some]))
        figures["khat_max"] = max(np.inf if (k := row["weights"]["khat"]) is None else k for row in some)
        for key in ("wrong_chirality", "broken_topology"):
            figures[key] = sum(row["validity"][key] for row in some)
        figures["redrawn"] = dict(sum((Counter(row["redrawn"]) for row in some), Counter()))
        figures["proposals"] = sum(row["proposals"] for row in some)
        figures["non_finite_energies"] = sum(round((1 - row["finite_energies"]) * row["n"]) for row in some)
        for key in ("nll_per_dof", "ess_forward"):
            figures[key] = _mean([(row["md"] or {}).get(key) for row in some])
        for metric in METRICS:
            columns = [(row["metrics"] or {}).get(metric) or {} for row in some]
            figures[metric] = {view: _mean([c.get(view) for c in columns]) for view in ("raw", "reweighted", "floor")}
        out[str(length)] = figures
    return out


def _on_frames(
    proposal: Proposal,
    drawn: Draws,
    layout: Layout,
    energies: Energies,
    frames: Sequence[tuple[np.ndarray, np.ndarray]],
    log_z: float,
    ess: float,
) -> dict[str, Any]:
    """What the frames of the dynamics say of the flow, which its own samples cannot: the modes that it misses.

    Energies are computed anew, since rounded positions do not have the energy of the file.

    Returns:
        `frames`; `impossible`, those of density zero; `nll_per_dof` (of the others; nats, Angstrom);
        `ess_forward` = Z / E_MD[w]; `consistency` = ess_forward / ess, well below 1 where the proposals miss a mode of
        the frames; `log_z_gap` = ln(1 / (Z E_MD[1/w])), minus the log of the share of the Boltzmann mass that the
        proposals have found.
    """
    x = np.concatenate([positions for positions, _ in frames])
    log_q = log_densities(proposal.model, layout, x, drawn.temperature)
    found = energies(x)
    some = np.isfinite(found)
    log_w = -found[some] / (KB * drawn.temperature) - log_q[some] + drawn.log_share
    log_z_md = float(np.log(len(log_w)) - np.logaddexp.reduce(-log_w))
    forward = forward_ess(log_w, log_z)
    return {
        "frames": len(x),
        "impossible": int((log_q == -np.inf).sum()),
        "nll_per_dof": nll_per_dof(log_q, layout.atoms),
        "ess_forward": forward,
        "consistency": forward / ess if ess else None,
        "log_z_gap": log_z_md - log_z,
    }


def _too_few(frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> bool:
    counts = [len(energies) for _, energies in frames]
    return sum(counts) < LEAST_FRAMES or min(counts) < LEAST_FRAMES // 2


def _reference(
    peptide: Peptide, frames: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[Conformations, Conformations] | None:
    """The two parts of the reference, None when there is none of use."""
    if _too_few(frames):
        return None
    parts = [Conformations(torsions(peptide, x), energies) for x, energies in frames]
    return (parts[0], parts[1]) if len(parts) > 1 else halves(parts[0])


def _md_energy(reference: Sequence[Conformations], kt: float) -> list[float]:
    """Mean energy of the dynamics in kT, and its standard error from the autocorrelation time."""
    energies = np.concatenate([part.energies for part in reference]) / kt
    effective = sum(len(part) / autocorrelation_time(part.energies) for part in reference)
    return [float(energies.mean()), float(energies.std() / np.sqrt(effective))]


def _notes(case: Case, proposal: Proposal, temperature: float, frames: Sequence[Any], given: bool) -> list[str]:
    notes = []
    low, high = proposal.config.get("temperatures", (0.0, np.inf))
    if not low <= temperature <= high:
        notes.append(f"{temperature:g} K is outside the {low:g} to {high:g} K that the weights were trained on")
    shortest, longest = proposal.config.get("lengths", (0, np.inf))
    if not shortest <= len(residues_of(case.peptide.sequence)) <= longest:
        notes.append(f"the weights were trained on {shortest} to {longest} residues")
    if unknown := proposal.unknown_forms(case.peptide):
        notes.append(f"the weights were not trained on {unknown}")
    if not case.sets and not given:
        notes.append("no molecular dynamics: no distances, forward ESS or likelihood")
    for flow in sorted({md.flow for md in case.sets if md.flow}):
        judged = ", which is judged here" if flow == proposal.hash else ""
        notes.append(f"the dynamics had moves to what the flow {flow[:12]} proposes{judged}")
    plain = [md.positions[k] for md in case.sets if not md.flow and (k := md.at(temperature)) is not None]
    turned = sum(int(turned_bonds(case.peptide, x).sum()) for x in plain)
    if turned:
        notes.append(
            f"{turned} of {sum(map(len, plain))} frames of the dynamics have a peptide bond cis, not before proline, "
            "in the share that their starts had: nothing turns it (molgen data md --flow has moves that do)"
        )
    for x, _ in frames:
        wrong = int(validate(case.peptide, x).wrong_chirality.sum())
        if wrong:
            notes.append(f"{wrong} of {len(x)} frames of the dynamics have a centre of the wrong hand")
    if frames and _too_few(frames):
        count = sum(len(energies) for _, energies in frames)
        notes.append(
            f"the dynamics have {counted(count, 'frame')} at {temperature:g} K, too few for distances and likelihood, "
            f"which need {LEAST_FRAMES} (molgen data md --time)"
        )
    if case.sets and not frames:
        known = sorted({float(t) for md in case.sets for t in md.temperatures})
        notes.append(f"no molecular dynamics at {temperature:g} K, only at {', '.join(f'{t:g}' for t in known)} K")
    return notes


def _finished(run: Run, name: str) -> dict[str, Any] | None:
    """The row of an earlier run, if it is there and did not fail."""
    path = run.directory / name
    row = json.loads(path.read_text(encoding="utf-8")) if run.resumed and path.exists() else {"error": "none"}
    return None if "error" in row else row


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
