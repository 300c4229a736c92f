"""Free-energy barrier of a reaction whose transition state `molgen ts` has found.

The frames reactant - transition state - product of its folder define how far along (s) and how far from (z) the path a
structure is; the energies of the frames give the first bias, so that the sampler knows the whole path from its first
round; the barrier is that of `molgen.reweight.barrier`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.optimize import nnls

from molgen.cvdiffusion.bias import WellTemperedBias
from molgen.cvdiffusion.target import closest_allowed
from molgen.cvdiffusion.walls import Wall
from molgen.errors import CalculatorError, InputError, check_path, check_temperature
from molgen.files import MANIFEST, SUMMARY, read_manifest, read_summary
from molgen.geometry.align import chained, rmsds_of
from molgen.geometry.bonds import distance_matrix
from molgen.io import load_reaction, write_extxyz
from molgen.potentials.ase import calculator_from_spec
from molgen.potentials.base import Potential
from molgen.reweight.barrier import Barrier, find_barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.estimate import Estimate
from molgen.reweight.importance import LEAST_DRAWS
from molgen.run import Run
from molgen.saddle.modes import finite_difference_hessian, masses
from molgen.units import KB, energy_unit, kcal
from molgen.variables import CV, path_s, path_z, values_and_gradients
from molgen.workflows.fes import FesSettings, run_fes
from molgen.workflows.fes_rounds import OnRound
from molgen.workflows.fes_settings import default_settings
from molgen.workflows.fes_system import System
from molgen.workflows.ts_output import INTERMEDIATE

IMAGES, BETWEEN = 13, 8  # frames of the path; energies for each step between two
TUBE, STIFFNESS = 0.4, 100.0  # radius in Angstrom, the wall begins at z = TUBE^2; its force constant in eV/A^4
ABOVE = 15.0  # kT by which the cap of the bias exceeds the energy barrier
HILL = 0.02  # width of the hills in s
PATH, SADDLE = "path.xyz", "ts.xyz"


@dataclass(frozen=True, eq=False)
class ReactionPath:
    """What a `ts` run leaves for a free-energy run.

    Attributes:
        frames: (M, N, 3) Angstrom, evenly spaced on each side of the saddle, each superposed on the one before.
        saddle: index of the transition state. energies: (M,) eV. profile: (2, K) s and eV, more closely spaced.
        potential: of the same calculator, charge and spin.
        stiffest: eV/A^2, largest eigenvalue of the Hessian at either end. described: of the `ts` run, for a manifest.
    """

    frames: np.ndarray
    saddle: int
    energies: np.ndarray
    profile: np.ndarray
    potential: Potential
    stiffest: float
    described: dict[str, Any]

    @property
    def cvs(self) -> tuple[CV, CV]:
        """s (0 to 1 from reactant to product) and z (Angstrom^2)."""
        return path_s(self.frames), path_z(self.frames)

    @property
    def system(self) -> System:
        """The molecule, starting from both ends."""
        return System(self.potential, self.frames[[0, -1]])

    @property
    def barrier(self) -> float:
        """eV, of the saddle above the lowest frame."""
        return float(self.energies[self.saddle] - self.energies.min())

    def settings(self, settings: FesSettings, temperature: float) -> FesSettings:
        """`settings` with a bias that may grow as high as the barrier, and steps as fine as the stiffest motion."""
        check_temperature(temperature)
        kt = KB * temperature
        cap = max(settings.cap, self.barrier / kt + ABOVE)
        width = min(settings.sampler.width, (kt / self.stiffest) ** 0.5)
        return replace(
            settings, cap=cap, gamma=max(settings.gamma, cap / 2), widths=settings.widths or (HILL,),
            # the first bias is that of the path already: there is nothing to correct
            sampler=replace(settings.sampler, width=width, corrections=0),
            schedule=replace(settings.schedule, end=min(settings.schedule.end, width / 2)),
        )  # fmt: skip

    def wall(self) -> Wall:
        """Keeps structures within about TUBE Angstrom (RMSD) of the path."""
        return Wall(self.cvs[1], TUBE**2, True, STIFFNESS)

    def arguments(
        self,
        settings: FesSettings,
        temperature: float,
        walls: Sequence[Wall | str] = (),
        log: Callable[[str], None] = lambda message: None,
    ) -> dict[str, Any]:
        """What a run along the path is given: `cvs`, `ranges`, `walls` and `settings`, by name.

        Args:
            walls: further ones. log: told where cap and bias factor are not those of `settings`.
        """
        taken = self.settings(settings, temperature)
        pairs = (("cap", "kT", settings.cap, taken.cap), ("bias factor", "", settings.gamma, taken.gamma))
        if raised := [f"{name} {used:.4g} {unit}".rstrip() + f" in place of {asked:g}"
                      for name, unit, asked, used in pairs if used != asked]:  # fmt: skip
            height = self.barrier / (KB * temperature)
            log(f"{', '.join(raised)}: the bias has to fill the path, whose barrier is {height:.0f} kT")
        return {"cvs": self.cvs[:1], "ranges": None, "walls": [self.wall(), *walls], "settings": taken}

    # `fill` and `report`, with `frames`, make a `molgen.workflows.fes_problem.Prior`

    def fill(self, bias: WellTemperedBias) -> None:
        """Hills, one a node, that mirror the energies of the path: V(s) ~ (1 - 1/gamma) (E(saddle) - E(s))."""
        s, energies = self.profile
        deep = (1 - 1 / bias.gamma) * np.maximum(self.energies[self.saddle] - energies, 0)
        nodes = bias.axes[0].nodes
        shape = np.exp(-(((nodes[:, None] - nodes) / bias.widths[0]) ** 2) / 2)
        heights = nnls(shape, np.interp(nodes, s, deep))[0]
        for node in np.flatnonzero(heights):
            grown = bias.evaluate([[nodes[node]]])[0][0]
            bias.add([[nodes[node]]], heights[node] * np.exp(grown / (bias.kt * (bias.gamma - 1))))

    def report(self, ensemble: Ensemble, run: Run | None, units: str) -> tuple[dict[str, Any], list[str]]:
        """The barrier and what of it is not known; `path.xyz` beside it."""
        if run is not None:
            energies = [{"energy": float(e), "relative_kcal": round(kcal(e - self.energies[0]), 4)}
                        for e in self.energies]  # fmt: skip
            frames = zip(self.frames, energies, strict=True)
            write_extxyz(run.path(PATH), [Atoms(ensemble.numbers, x, info=info) for x, info in frames])
        barrier, why = _barrier_or_why(ensemble, self)
        if why:
            return {}, [f"the barrier: {why}"]
        sides, few = {"forward": barrier.forward, "reverse": barrier.reverse}, barrier.samples < LEAST_DRAWS
        missing = [
            f"the {name} barrier: too few samples at s = {barrier.place:.2f} ({barrier.samples})"
            for name, found in sides.items() if few or not np.isfinite([found.value, found.error]).all()
        ]  # fmt: skip
        return {"barrier": summarised(barrier, self, units)}, missing


def read_path(folder: str | Path) -> ReactionPath:
    """The path of a finished `molgen ts` run.

    Frames come from its path.xyz; without one (`--verify none`), from straight lines between reactant, saddle and
    product, which must then still be where they were.

    Raises:
        InputError: no such folder or file in it, another command's folder, or no saddle that joins the two sides.
        CalculatorError: a frame has no energy.
    """
    check_path(folder, "--from-ts")
    folder = Path(folder)
    asked = _require_joining(folder)
    numbers, path, index = _path_frames(folder, asked)
    potential = calculator_from_spec(
        asked.get("calculator", "gfn2"), asked.get("calculator_kwargs"), numbers, asked.get("charge", 0),
        asked.get("spin") or 0,
    )  # fmt: skip
    s, energies = _energies_along(path, potential, folder)
    profile = np.stack([s, energies])[:, np.argsort(s)]
    stiffest = max(np.linalg.eigvalsh(finite_difference_hessian(potential, path[end])[0])[-1] for end in (0, -1))
    names = {key: asked.get(key) for key in ("calculator", "calculator_kwargs", "charge", "spin")}
    return ReactionPath(
        path, index, energies[::BETWEEN], profile, potential, float(stiffest), {"from_ts": str(folder), **names}
    )


def _require_joining(folder: Path) -> dict[str, Any]:
    """The settings of the `ts` run, whose best saddle joins reactant and product as far as it was asked to tell."""
    manifest, summary = _left(folder)
    if manifest.get("command") != "ts":
        raise InputError(
            f"is a run of {manifest.get('command')!r}", where=str(folder), expected="the folder of a molgen ts run"
        )
    asked, results = manifest.get("settings", {}), summary.get("results") or [{}]
    verdict, refined = results[0].get("verdict", "without a result"), asked.get("refine", True)
    if verdict not in ("intended", "unverified") or not refined:
        step = folder / INTERMEDIATE
        more = "with more --samples until its verdict is 'intended'"
        more += f", or for one step, to or from {step}" if step.exists() else ""
        proven = [path for path in sorted(folder.glob("search-*")) if _joins(path)]
        more += f"; of its steps take {' or '.join(map(str, proven))}" if proven else ""
        raise InputError(
            f"its best saddle is {verdict.replace('_', ' ')}" if refined else "a guess, not refined", where=str(folder),
            expected="a transition state that joins reactant and product",
            remedy=f"run molgen ts again {more if refined else 'without --no-refine'}",
        )  # fmt: skip
    return asked


def _path_frames(folder: Path, asked: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, int]:
    """Atomic numbers (N,), frames (IMAGES, N, 3) of :func:`even_path` and the index of the saddle among them."""
    saddle = _frames(folder / SADDLE)[0]
    frames = _frames(folder / PATH) if (folder / PATH).exists() else _ends(asked, folder, saddle)
    if len(frames) < 3 or any(not np.array_equal(frame.numbers, saddle.numbers) for frame in frames):
        raise InputError(
            f"{len(frames)} frames, not all of the atoms of {SADDLE}", where=str(folder / PATH),
            expected="at least 3 frames from reactant to product", remedy="run molgen ts again",
        )  # fmt: skip
    x = np.stack([frame.positions for frame in frames])
    path, index = even_path(x, int(rmsds_of(x, saddle.positions).argmin()))
    for k, frame in enumerate(path):
        if (distance_matrix(frame[None])[0] < closest_allowed(saddle.numbers)).any():
            raise InputError(
                f"atoms come too close in frame {k}", where=f"path of {folder}", expected="a path that avoids clashes",
                remedy="run molgen ts with --verify quick or irc, which writes the path it followed",
            )  # fmt: skip
    return saddle.numbers, path, index


def _energies_along(path: np.ndarray, potential: Potential, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """s and eV, `BETWEEN` of each for every step from a frame to the next, and those of the last frame."""
    share = np.linspace(0, IMAGES - 1, BETWEEN * (IMAGES - 1) + 1)
    lower = np.minimum(share.astype(int), IMAGES - 2)
    fine = path[lower] + (share - lower)[:, None, None] * (path[lower + 1] - path[lower])
    energies = potential.energy_and_forces(fine)[0]
    if not np.isfinite(energies).all():
        bad = int(np.flatnonzero(~np.isfinite(energies))[0])
        raise CalculatorError(
            f"no energy at {share[bad]:g} ({potential.failures.get(bad, 'not finite')})", where=f"path of {folder}",
            expected=f"energies along all of its {IMAGES} frames",
        )  # fmt: skip
    return values_and_gradients([path_s(path)], fine)[0][:, 0], energies


def _joins(folder: Path) -> bool:
    """Whether the best saddle of a search is intended."""
    return ((read_summary(folder) or {}).get("results") or [{}])[0].get("verdict") == "intended"


def even_path(frames: np.ndarray, saddle: int, images: int = IMAGES) -> tuple[np.ndarray, int]:
    """Frames (images, N, 3) at even steps of RMSD on each side of the saddle, and its new index.

    Args:
        frames: (M, N, 3) Angstrom, M >= 3, from reactant to product; neighbours are joined by straight lines after
            superposition. saddle: index of the frame that is kept as it is, not the first or last.

    Raises:
        InputError: the saddle is an end of the path, or a side of it has no length.
    """
    if not 0 < saddle < len(frames) - 1:
        raise InputError(
            f"the transition state is frame {saddle} of {len(frames)}", where="reaction path",
            expected="frames on both sides of it",
        )  # fmt: skip
    path = frames.astype(float) - frames.mean(1, keepdims=True)
    for _ in range(4):  # straight pieces are superposed anew, which changes their lengths a little
        path = chained(path)
        length = np.concatenate([[0.0], np.cumsum(rmsds_of(path[1:], path[:-1]))])
        before, after = length[saddle], length[-1] - length[saddle]
        if min(before, after) < 1e-3:
            raise InputError(
                "the transition state is the same structure as an end", where="reaction path",
                expected="reactant, transition state and product that differ",
            )  # fmt: skip
        first = int(np.clip(round((images - 1) * before / (before + after)), 2, images - 3))
        wanted = np.concatenate([
            np.linspace(0, before, first + 1), np.linspace(before, length[-1], images - first)[1:],
        ])  # fmt: skip
        flat = path.reshape(len(path), -1)
        path = np.stack([np.interp(wanted, length, column) for column in flat.T], 1).reshape(images, -1, 3)
        saddle = first
    return chained(path), saddle


def barrier_of(ensemble: Ensemble, path: ReactionPath) -> Barrier:
    """The free-energy barrier along s, see `molgen.reweight.barrier` for its definition; infinite, and why, where no
    sample lies on one side."""
    return _barrier_or_why(ensemble, path)[0]


def _barrier_or_why(ensemble: Ensemble, path: ReactionPath) -> tuple[Barrier, str]:
    s = ensemble.cv("path-s").values
    used = np.flatnonzero((ensemble.weights > 0) & np.isfinite(s))
    slopes = np.zeros(len(s))
    slopes[used] = path_speed(path, ensemble.positions[used])
    near = float(values_and_gradients(path.cvs[:1], path.frames[path.saddle][None])[0][0, 0])
    try:
        found = find_barrier(
            s, slopes, ensemble.log_weights, ensemble.weights, ensemble.temperature, groups=ensemble.groups, near=near
        )
    except InputError as error:
        unknown = Estimate(np.inf, np.inf, np.inf, False, "eV", error.what)
        return Barrier(unknown, unknown, unknown, unknown, near, 0), error.what
    return ensemble.doubted(found), ""


def path_speed(path: ReactionPath, positions: np.ndarray) -> np.ndarray:
    """|D s| (n,) of positions (n, N, 3): the mass-weighted length of the gradient of s, 1/(Angstrom sqrt(amu))."""
    gradient = values_and_gradients(path.cvs[:1], positions)[1][:, 0]
    return np.sqrt((np.nan_to_num(gradient) ** 2 / masses(path.potential.numbers)[:, None]).sum((1, 2)))


def summarised(barrier: Barrier, path: ReactionPath, units: str = "kcal/mol") -> dict[str, Any]:
    """A barrier for a summary, in `units`, with the energies of the saddle above both ends beside it."""
    named = {"forward": barrier.forward, "reverse": barrier.reverse, "reaction": barrier.reaction}
    top, unit = path.energies[path.saddle], energy_unit(units)
    return {
        **{name: asdict(estimate.scaled(1 / unit, units)) for name, estimate in named.items()},
        "s": barrier.place, "samples": barrier.samples,
        "energy_forward": (top - path.energies[0]) / unit, "energy_reverse": (top - path.energies[-1]) / unit,
    }  # fmt: skip


def fes_from_ts(
    folder: str | Path,
    temperature: float = 300.0,
    *,
    settings: FesSettings | None = None,
    walls: Sequence[Wall | str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    units: str = "kcal/mol",
    log: Callable[[str], None] = lambda message: None,
    progress: OnRound = lambda figures: None,
) -> tuple[Ensemble, Barrier]:
    """Sample along the path of a `molgen ts` run, and its free-energy barrier; arguments as of `sample_cv`.

    The basins are what the tube around the path holds: conformers of reactant or product outside of it do not count.
    """
    path = read_path(folder)
    given = path.arguments(settings or default_settings("cartesian"), temperature, walls, log)
    ensemble, _ = run_fes(
        path.system, temperature=temperature, **given, seed=seed, out=out, overwrite=overwrite, resume=resume,
        units=units, described=path.described, log=log, progress=progress, prior=path,
    )  # fmt: skip
    return ensemble, barrier_of(ensemble, path)


def _left(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and summary of a finished run."""
    manifest, summary = read_manifest(folder), read_summary(folder)
    if manifest is None or summary is None:
        raise InputError(
            f"no {MANIFEST if manifest is None else SUMMARY}" if folder.is_dir() else "no such folder",
            where=str(folder), expected="the folder of a finished molgen ts run",
            remedy="run molgen ts REACTANT PRODUCT --out DIR first",
        )  # fmt: skip
    return manifest, summary


def _frames(path: Path) -> list[Atoms]:
    from ase.io import read

    if not path.exists():
        raise InputError(
            f"no {path.name}", where=str(path.parent), expected="the folder of a finished molgen ts run",
            remedy="run molgen ts again",
        )  # fmt: skip
    try:
        found = [frame for frame in read(path, index=":") if isinstance(frame, Atoms)]
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise InputError(
            f"cannot be read ({type(error).__name__}: {error})", where=str(path), expected="an extxyz file",
            remedy="run molgen ts again",
        ) from error  # fmt: skip
    if not found or not all(np.isfinite(frame.positions).all() for frame in found):
        raise InputError("holds no structure, or coordinates that are not finite", where=str(path))
    return found


def _ends(asked: Mapping[str, Any], folder: Path, saddle: Atoms) -> list[Atoms]:
    """Reactant, saddle and product, in one order of atoms, where the run followed no path."""
    sides, base = [asked.get("reactant"), asked.get("product")], Path(asked.get("folder", ""))  # where it was run
    if asked.get("smiles") or any(not side or side.startswith("[") or not (base / side).is_file() for side in sides):
        raise InputError(
            f"no {PATH}, and {asked.get('smiles') or ' and '.join(map(str, sides))} cannot be read again",
            where=str(folder), expected=f"{PATH}, or one file each for reactant and product where they were",
            remedy="run molgen ts with --verify quick or irc",
        )  # fmt: skip
    reaction, _ = load_reaction(
        *(base / str(side) for side in sides), charge=asked.get("charge", 0), spin=asked.get("spin"),
        map_atoms=asked.get("map_atoms", True),
    )  # fmt: skip
    return [Atoms(reaction.numbers, reaction.reactant), saddle, Atoms(reaction.numbers, reaction.product)]
