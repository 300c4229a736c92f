"""What decides a free-energy run beside the molecule, its collective variables, walls and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from molgen.cvdiffusion.controller import KINDS
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import SamplerSettings
from molgen.errors import InputError

REPAIRS = ("auto", "always", "never")
COORDINATES = ("auto", "cartesian", "internal")


@dataclass(frozen=True)
class FesSettings:
    """What decides a run beside the molecule, its collective variables, walls and temperature.

    Attributes:
        sampler: rounds and learning. schedule: steps of a trajectory (its spread is measured).
        coordinates: of the process: "cartesian", "internal" (bonds stay), or "auto"; internal ones bring their own
            widths, last noise and controller.
        frames: of the short simulation that everything starts from.
        gamma: bias factor. widths: of the hills, one a collective variable, in its unit; None for the defaults.
        cap: kT, the bias grows no higher. bins: of the grid a variable; None: four a hill width.
        controller: "auto", "point", "pair" or "trunk". hidden: width of its perceptrons.
        samples: drawn with the finished controller, in `fine` times as many steps.
        paths: that the density of each is averaged over; costs time of the controller, no energies.
        learning_rate: peak. fixed_kernels: keep the kernels of a Gaussian target (for comparison).
        stop: end before all rounds are done once the surface rests; of two or three variables the noise of its many
            bins hardly lets it.
        repair: whether sequential Monte Carlo may try to mend what path weights do not, for as many energies as the run
            took: "auto" where k-hat refuses the weights, "always" where the verdict is not "reliable", or "never".
    """

    sampler: SamplerSettings = SamplerSettings()
    schedule: Schedule = Schedule()
    coordinates: str = "auto"
    frames: int = 400
    gamma: float = 12.0
    widths: tuple[float, ...] | None = None
    cap: float = 23.0
    bins: int | None = None
    controller: str = "auto"
    hidden: int = 192
    samples: int = 4000
    fine: int = 2
    paths: int = 4
    learning_rate: float = 1.5e-3
    fixed_kernels: bool = False
    stop: bool = True
    repair: str = "auto"


def default_settings(coordinates: str) -> FesSettings:
    """Settings for trajectories in "cartesian" or "internal" coordinates.

    Internal ones are for force fields: many cheap energies, and frames enough to whiten by.

    Raises:
        InputError: other coordinates.
    """
    if coordinates not in COORDINATES[1:]:
        raise InputError(f"{coordinates!r}", where="default_settings", expected=" or ".join(COORDINATES[1:]))
    if coordinates == "cartesian":
        sampler = SamplerSettings(rounds=300, learn=80, corrections=3)
        return FesSettings(sampler=sampler, coordinates=coordinates, samples=16_000)
    sampler = SamplerSettings(rounds=100, draws=1024, learn=200, pretrain=2500)
    return FesSettings(
        sampler=sampler, schedule=Schedule(steps=60), coordinates=coordinates, frames=4000, hidden=256, samples=16_000,
        fine=1,
    )  # fmt: skip


def check_settings(settings: FesSettings, starts: int, atoms: int) -> None:
    """Refuse what would fail only after energies have been spent.

    Raises:
        InputError: names the setting.
    """
    if not isinstance(settings, FesSettings):
        raise InputError(f"{settings!r} given", where="settings", expected="molgen.workflows.fes_settings.FesSettings")
    flat = flattened(asdict(settings))
    names = ("rounds", "draws", "learn", "batch", "pretrain", "memory", "refit")
    least = dict.fromkeys(
        [*(f"sampler.{name}" for name in names), "schedule.steps", "samples", "fine", "paths", "hidden"], 1
    )
    for name, low in {**least, "frames": starts}.items():
        if flat[name] < low:
            raise InputError(f"{name} = {flat[name]}", where="settings", expected=f"at least {low}")
    for name in ("sampler.width", "schedule.end", "schedule.start", "learning_rate"):
        if not 0 < flat[name] < np.inf:
            raise InputError(f"{name} = {flat[name]}", where="settings", expected="above 0")
    if not 1 < settings.gamma < np.inf:
        raise InputError(f"gamma = {settings.gamma:g}", where="settings", expected="a bias factor above 1, say 10")
    if not settings.cap > 0:
        raise InputError(f"cap = {settings.cap:g} kT", where="settings", expected="above 0")
    check_repair(settings.repair)
    if settings.coordinates not in COORDINATES:
        raise InputError(
            f"unknown coordinates {settings.coordinates!r}", where="settings", expected=", ".join(COORDINATES)
        )
    known = ("auto", "point") if atoms == 1 else ("auto", *KINDS)
    if settings.controller not in known:
        raise InputError(f"unknown controller {settings.controller!r}", where="settings", expected=", ".join(known))


def check_repair(repair: str) -> None:
    """Refuse a `FesSettings.repair` that is none of `REPAIRS`."""
    if repair not in REPAIRS:
        raise InputError(f"unknown repair {repair!r}", where="repair", expected=", ".join(REPAIRS))


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with names such as "sampler.rounds" for those in groups."""
    groups = {name: value if isinstance(value, dict) else {"": value} for name, value in settings.items()}
    return {f"{name}.{key}".rstrip("."): value for name, group in groups.items() for key, value in group.items()}
