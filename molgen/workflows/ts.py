"""From reactant and product to a transition state that has been checked: guess, refine, verify, rank."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from ase import Atoms

from molgen.data.reactions import Reaction
from molgen.device import resolve_device
from molgen.errors import CalculatorError, InputError, check_counts
from molgen.geometry.align import rmsd_of
from molgen.geometry.bonds import overlapping
from molgen.io import load_reaction
from molgen.potentials.base import Potential
from molgen.potentials.xtb import one_thread
from molgen.rng import generator
from molgen.saddle import Verification, calls_allowed, mode_overlap, refine
from molgen.saddle.descent import relax
from molgen.saddle.verify import LEAST_BARRIER, bonding_differences, judge_wells, settle
from molgen.tsgen import Generator
from molgen.tsgen.condition import prepare
from molgen.tsgen.generate import SIGMA, generate
from molgen.tsgen.rank import confidence, guess_features, refined_features
from molgen.units import kcal
from molgen.workflows.ts_correction import DEFAULT_CORRECTION, correct_guess, correct_saddle, fitting_correction
from molgen.workflows.ts_result import OUT_OF_TIME, VERDICTS, Candidate, TSResult
from molgen.workflows.ts_setup import model_for, potential_for

SAME_GUESS = 0.05  # Angstrom RMSD: guesses closer than this are refined once
SAME_SADDLE = 0.05  # Angstrom RMSD, with energies within SAME_ENERGY: one saddle
SAME_ENERGY = 2e-3  # eV
PHYSICS_TRIES = 4  # noisy sqrt-distance guesses, at least, until one leads to the intended saddle
END_FMAX, END_CALLS = 0.01, 200  # eV/Angstrom and gradient calls, for the wells the barriers are measured from
Method = Literal["quick", "irc", "none"]


def find_ts(
    reactant: Any = None,
    product: Any = None,
    *,
    smiles: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    samples: int = 8,
    refine: bool = True,
    calculator: Any = "gfn2",
    calculator_kwargs: Mapping[str, Any] | None = None,
    verify: str = "quick",
    max_calls: int | None = None,
    time_budget: float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    weights: str | Path = "tsgen",
    correction: str = DEFAULT_CORRECTION,
    steps: int | None = None,
    map_atoms: bool = True,
    seed: int = 0,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    log: Callable[[str], None] = lambda message: None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> TSResult:
    """Find a transition state between two structures and check it.

    The model proposes, the calculator disposes: every distinct guess is refined to a saddle, its modes counted, and
    both sides followed down to see which molecules they are. When no guess of the model leads to the intended saddle,
    or the weights do not know an element, the sqrt-distance guess is tried as well.

    Args:
        reactant, product: path (xyz, extxyz, pdb, sdf), ase.Atoms, or a list of these, one a fragment. Any atom
            order, frame and placement. smiles: "reactant>>product" instead.
        charge: e; default the formal charges of SMILES, sdf and mol files, else 0. spin: unpaired electrons; default
            the fewest possible.
        samples: guesses drawn. refine: False keeps the raw guesses (then nothing is verified).
        calculator: "gfn2", "gfn1", "module:Class", an ASE calculator, or a molgen Potential; calculator_kwargs: for
            "module:Class".
        verify: "quick" (modes, then descents), "irc" (intrinsic reaction coordinate), "none".
        max_calls: gradient calls of one refinement, at most; default 100, 8 an atom for more than 21 atoms.
        time_budget: s; no further guess is refined after that, the first always is. What is left is counted in
            `result.rejections`.
        out: folder for ts.xyz, guesses.xyz, path.xyz, ts_corrected.xyz, barrier.png, summary.json, manifest.json.
            overwrite: replace a run there.
        weights: name or folder. steps: flow steps; default the weights' own. device, dtype: of the model.
        correction: weights that carry the verified saddle, or without one the guess, to the level of their training set
            (`result.corrected`), name or folder, or "none"; used where they read gradients of this calculator.
        log: called with lines for people; progress: called with (stage, done, total).

    Returns:
        TSResult, whatever the verdict: look at `result.verified`.

    Raises:
        InputError: unusable input or options. CalculatorError: the calculator failed on every guess.
    """
    check_counts(
        samples=(samples, 1), steps=(steps, 1), max_calls=(max_calls, 1), seed=(seed, 0), charge=(charge, None),
        spin=(spin, 0),
    )  # fmt: skip
    if verify not in get_args(Method):
        raise InputError(f"unknown method {verify!r}", where="--verify", expected=", ".join(get_args(Method)))
    if time_budget is not None and not (isinstance(time_budget, (int, float)) and time_budget > 0):
        raise InputError(f"{time_budget!r} given", where="--time-budget", expected="a duration above 0, in seconds")
    begin, device = time.monotonic(), str(resolve_device(device))
    reaction, notes = load_reaction(reactant, product, smiles=smiles, charge=charge, spin=spin, map_atoms=map_atoms)
    potential = potential_for(calculator, calculator_kwargs, reaction)
    model = model_for(weights, reaction, device, dtype, notes)
    corrector = fitting_correction(correction, reaction, calculator, calculator_kwargs, device, dtype)
    if corrector is None and correction not in (DEFAULT_CORRECTION, "none"):
        notes.append(f"warning: {correction} does not know this calculator or kind of reaction: nothing is corrected")
    for note in notes:
        log(note)
    calls_before = potential.calls  # the user's own Potential may have worked before
    calls_each = max_calls or calls_allowed(len(reaction))
    deadline = math.inf if time_budget is None else begin + time_budget
    search = _Search(reaction, potential, cast(Method, verify) if refine else None, progress, calls_each, deadline)
    settings = {
        "reactant": str(reactant), "product": str(product), "smiles": smiles, "charge": reaction.charge,
        "spin": reaction.spin, "samples": samples, "refine": refine, "calculator": str(calculator),
        "calculator_kwargs": dict(calculator_kwargs or {}), "verify": verify, "weights": str(weights),
        "correction": str(correction), "steps": steps, "max_calls": calls_each,
        "time_budget": time_budget, "map_atoms": map_atoms, "folder": str(Path.cwd()),
    }  # fmt: skip

    def work(write: Callable[[TSResult], None]) -> TSResult:
        result = TSResult([], reaction, notes, [], checkpoint_hash=model.hash if model else None)

        def publish() -> None:
            result.candidates = ranked(search.candidates)
            result.guesses = [search.guess_atoms(*start) for start in search.starts]
            result.gradient_calls, result.rejections = potential.calls - calls_before, search.rejections
            result.seconds = time.monotonic() - begin
            write(result)

        if model is not None:
            search.propose_tsgen(model, samples, steps or model.steps, seed)
            publish()
            while search.advance():
                publish()
            if refine and verify != "none" and search.best_verdict() == "intended":
                search.best_with_relaxed_ends()  # may show that none is
        if search.best_verdict() not in ("intended", "unverified") and not search.out_of_time():
            if model is not None:
                log("no guess of the model leads to the intended saddle: trying the sqrt-distance guess too")
            search.propose_sqrt_distance(max(samples, PHYSICS_TRIES) if refine else samples, seed)
            publish()
            while search.best_verdict() != "intended" and search.advance():
                publish()
        if refine and verify != "none":
            best = search.best_with_relaxed_ends()
            if corrector is not None and best.verdict == "intended":
                guess = search.starts[best.sample][0] if best.source == "TS-GEN" else None
                result.corrected = correct_saddle(corrector, reaction, potential, best.atoms.positions, guess)
            elif corrector is not None and model is not None:
                result.corrected = correct_guess(corrector, reaction, potential, search.starts[0][0])
            publish()
        if all(candidate.verdict == "failed" for candidate in result.candidates):
            raise CalculatorError(
                f"failed on every guess: {result.best.reason}",
                where=f"calculator {calculator!r}",
                remedy="check --charge and --spin, or choose another --calculator",
            )
        return result

    if out is None:
        with one_thread(len(reaction)):
            return work(lambda result: None)
    from molgen.run import Run
    from molgen.workflows.ts_output import write_result

    with Run(out, "ts", settings, seed=seed, device=device, overwrite=overwrite) as run, one_thread(len(reaction)):
        result = work(lambda partial: write_result(run, partial, final=False))
        write_result(run, result, final=True)
    return result


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Best first: by verdict, then confidence (unknown counts as one half), then order of drawing; never by energy."""
    return sorted(
        candidates,
        key=lambda c: (VERDICTS.index(c.verdict), -(0.5 if c.confidence is None else c.confidence), c.sample),
    )


class _Search:
    """Guesses waiting to be refined, and the candidates they became."""

    def __init__(
        self,
        reaction: Reaction,
        potential: Potential,
        method: Method | None,
        progress: Callable[[str, int, int], None],
        max_calls: int = 100,
        deadline: float = math.inf,
    ):
        self.reaction, self.potential, self.progress = reaction, potential, progress
        self.max_calls, self.deadline = max_calls, deadline
        self.method: Method | None = method
        self.starts: list[tuple[np.ndarray, str, int, dict[str, float] | None]] = []
        self.candidates: list[Candidate] = []
        self.relaxed: list[Candidate] = []  # the ends of their paths
        self.rejections: Counter = Counter()
        self.calibration: Mapping[str, Any] = {}
        self.done = 0
        self.sqrt_guess = prepare([reaction]).guess[0].double().numpy()

    def propose_tsgen(self, model: Generator, samples: int, steps: int, seed: int) -> None:
        """Draw guesses from the model; the first is the deterministic one."""
        self.calibration = model.config.get("confidence", {})
        guesses = generate(model.model, [self.reaction], samples=samples, steps=steps, seed=seed)[0]
        for k, (x, deviation) in enumerate(zip(guesses.positions.numpy(), guesses.deviation.numpy(), strict=True)):
            features = guess_features(deviation, rmsd_of(x, self.sqrt_guess))
            self.starts.append((x, "TS-GEN", k, features))

    def propose_sqrt_distance(self, samples: int, seed: int) -> None:
        """The sqrt-distance guess, then noisy copies of it."""
        for k in range(samples):
            noise = SIGMA * generator(seed, k).normal(size=self.sqrt_guess.shape) if k else 0.0
            self.starts.append((self.sqrt_guess + noise, "sqrt-distance", len(self.starts), None))

    def advance(self) -> bool:
        """Refine and verify the next distinct guess; False when none is left, or no time."""
        total = len(self.starts)
        if self.done < total and self.out_of_time():
            self.rejections[OUT_OF_TIME] += total - self.done
            self.done = total
        while self.done < total:
            k = self.done
            self.progress("refining guesses", k, total)
            self.done += 1
            x, source, sample, features = self.starts[k]
            if any(rmsd_of(x, self.starts[j][0]) < SAME_GUESS for j in range(k)):
                self.rejections["same guess as an earlier one"] += 1
                continue
            candidate = self._candidate(x, source, sample, features)
            if candidate is not None:
                self.candidates.append(candidate)
            self.progress("refining guesses", self.done, total)
            return True
        return False

    def out_of_time(self) -> bool:
        """Whether no further guess may be begun."""
        return bool(self.candidates) and time.monotonic() > self.deadline

    def best_verdict(self) -> str:
        return min((c.verdict for c in self.candidates), key=VERDICTS.index, default="failed")

    def guess_atoms(self, x: np.ndarray, source: str, sample: int, features: dict[str, float] | None) -> Atoms:
        atoms = Atoms(self.reaction.numbers, x)
        atoms.info = {"source": source, "sample": sample}
        value = confidence(features, self.calibration.get("guess")) if features else None
        if value is not None:
            atoms.info["confidence_guess"] = round(value, 4)
        return atoms

    def _candidate(self, x: np.ndarray, source: str, sample: int, features: dict | None) -> Candidate | None:
        """The candidate a guess becomes; None when it is a saddle already known."""
        reaction, before = self.reaction, self.potential.calls
        candidate = Candidate(self.guess_atoms(x, source, sample, features), source, sample)
        candidate.confidence = candidate.atoms.info.get("confidence_guess")
        if self.method is None:
            candidate.reason = "not refined"
            return self._finish(candidate, before)
        if overlap := overlapping(reaction.numbers, x):
            self.rejections["guess with overlapping atoms"] += 1
            candidate.verdict, candidate.reason = "not_a_saddle", f"{overlap} in the guess, so it was not refined"
            return self._finish(candidate, before)
        try:
            ends = reaction.reactant, reaction.product
            saddle = refine(self.potential, x, reactant=ends[0], product=ends[1], max_calls=self.max_calls)
        except CalculatorError as error:
            self.rejections["calculator failed"] += 1
            candidate.verdict, candidate.reason = "failed", error.what
            return self._finish(candidate, before)
        candidate.refine_calls = saddle.gradient_calls
        candidate.atoms.positions, candidate.energy = saddle.positions, saddle.energy
        if features is not None and saddle.converged:  # a search that was cut short says nothing yet
            overlap = mode_overlap(saddle, reaction.numbers, *ends)
            extra = refined_features(rmsd_of(saddle.positions, x), overlap, saddle.gradient_calls)
            candidate.confidence = confidence({**features, **extra}, self.calibration.get("refined"))
        if not saddle.converged:
            self.rejections["refinement did not converge"] += 1
            candidate.verdict = "not_a_saddle"
            candidate.reason = f"forces still {saddle.fmax:.2f} eV/A after {saddle.gradient_calls} gradient calls"
            return self._finish(candidate, before)
        if self._known(candidate):
            return None
        if self.method == "none":
            candidate.reason = "refined, not verified (--verify none)"
            return self._finish(candidate, before)
        try:
            settled, checked = settle(self.potential, saddle, *ends, method=self.method, max_calls=self.max_calls)
            candidate.refine_calls = settled.gradient_calls
            candidate.atoms.positions, candidate.energy = settled.positions, settled.energy
            self._judge(candidate, checked)
            if candidate.energy != saddle.energy and self._known(candidate):
                return None
        except CalculatorError as error:
            self.rejections["calculator failed"] += 1
            candidate.verdict, candidate.reason = "failed", error.what
        return self._finish(candidate, before)

    def _known(self, candidate: Candidate) -> bool:
        """Whether an earlier guess led to this saddle; counted."""
        for known in self.candidates:
            same_energy = known.energy is not None and abs(known.energy - (candidate.energy or 0.0)) < SAME_ENERGY
            if same_energy and rmsd_of(known.atoms.positions, candidate.atoms.positions) < SAME_SADDLE:
                self.rejections["same saddle as an earlier guess"] += 1
                return True
        return False

    def _judge(self, candidate: Candidate, checked: Verification) -> None:
        candidate.verdict, candidate.reason = checked.verdict, checked.reason
        candidate.imaginary_frequency_cm = checked.imaginary_frequency_cm
        candidate.path_positions, candidate.path_energies = checked.path_positions, checked.path_energies
        candidate.ts_index = checked.ts_index
        if checked.barriers is not None:
            candidate.barrier_forward_kcal, candidate.barrier_reverse_kcal = map(kcal, checked.barriers)

    def best_with_relaxed_ends(self) -> Candidate:
        """The best candidate after the ends of its path were relaxed; another one if that showed it to be worse."""
        while (best := ranked(self.candidates)[0]) not in self.relaxed:
            self.relaxed.append(best)
            self.relax_ends(best)
        return best

    def relax_ends(self, candidate: Candidate) -> None:
        """Relax the ends of a candidate's path tightly: verification stops as soon as it knows which wells they are.

        Where one goes on to another molecule, the candidate is judged anew by the ends it has now.
        """
        if candidate.path_positions is None or candidate.path_energies is None or candidate.ts_index is None:
            return
        before, changed = self.potential.calls, False
        x, energy = list(candidate.path_positions), list(candidate.path_energies)
        top = energy[candidate.ts_index]
        for end, barrier in ((0, "barrier_forward_kcal"), (-1, "barrier_reverse_kcal")):
            self.progress("relaxing the ends", -end, 2)
            try:
                well = relax(self.potential, x[end], fmax=END_FMAX, max_calls=END_CALLS)
            except CalculatorError as error:
                self.rejections["calculator failed"] += 1
                candidate.reason += f"; relaxing an end failed ({error.what})"
                continue
            if well.energy >= energy[end]:
                continue
            changed |= bonding_differences(self.reaction.numbers, x[end], well.positions) > 0
            downhill = well.path[1:]
            if end == 0:
                x, energy = [p for _, p in downhill[::-1]] + x, [e for e, _ in downhill[::-1]] + energy
                candidate.ts_index += len(downhill)
            else:
                x, energy = x + [p for _, p in downhill], energy + [e for e, _ in downhill]
            setattr(candidate, barrier, kcal(top - well.energy))
        if changed:
            x, energy = self._judge_again(candidate, x, energy)
        candidate.path_positions, candidate.path_energies = np.array(x), np.array(energy)
        if top - max(energy[0], energy[-1]) < LEAST_BARRIER:
            candidate.reason += f"; less than {LEAST_BARRIER} eV above one of its wells, it is hardly a barrier"
        self._finish(candidate, before - candidate.gradient_calls)

    def _judge_again(
        self, candidate: Candidate, x: list[np.ndarray], energy: list[float]
    ) -> tuple[list[np.ndarray], list[float]]:
        """The path, from reactant to product, of a candidate whose ends have become other molecules on relaxing."""
        assert candidate.ts_index is not None
        drops = [energy[candidate.ts_index] - energy[end] for end in (0, -1)]
        failed = candidate.reason.partition("; relaxing an end failed")
        candidate.verdict, swap, reason = judge_wells(
            self.potential, [x[0], x[-1]], drops, self.reaction.reactant, self.reaction.product
        )
        candidate.reason = reason + failed[1] + failed[2]
        candidate.barrier_forward_kcal, candidate.barrier_reverse_kcal = map(kcal, drops[::-1] if swap else drops)
        if swap:
            x, energy, candidate.ts_index = x[::-1], energy[::-1], len(x) - 1 - candidate.ts_index
        return x, energy

    def _finish(self, candidate: Candidate, calls_before: int) -> Candidate:
        candidate.gradient_calls = self.potential.calls - calls_before
        info = {"verdict": candidate.verdict, "energy": candidate.energy, "confidence": candidate.confidence}
        info |= {
            key: getattr(candidate, key)
            for key in ("imaginary_frequency_cm", "barrier_forward_kcal", "barrier_reverse_kcal")
        }
        candidate.atoms.info.update({key: value for key, value in info.items() if value is not None})
        return candidate
