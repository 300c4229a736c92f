"""`molgen doctor`: what is installed, whether it works, and what to do about what does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

import molgen
from molgen.cli import common
from molgen.errors import CheckpointError, MolgenError
from molgen.pool import cores

if TYPE_CHECKING:
    from molgen.nn.trunk import Trunk

OK, ABSENT, FAIL = "ok", "absent", "fail"
_REINSTALL = "install molgen again: pip install --force-reinstall . in its source folder"
# Distribution, module to import, what it is for.
_REQUIRED = (
    ("torch", "torch", "the networks"),
    ("e3nn", "e3nn", "irreps notation and reference tensor products"),
    ("torch-geometric", "torch_geometric", "exchange of batches with PyG"),
    ("numpy", "numpy", "arrays"),
    ("scipy", "scipy", "optimisers, assignment, sparse graphs"),
    ("networkx", "networkx", "graphs of bonds"),
    ("ase", "ase", "structures, calculators and optimisers"),
    ("rdkit", "rdkit.Chem", "SMILES input"),
    ("tblite", "tblite.interface", "GFN1-xTB and GFN2-xTB, the default calculator"),
    ("openmm", "openmm", "force fields"),
    ("mdtraj", "mdtraj", "topologies, selections and trajectories of peptides"),
    ("arviz-stats", "arviz_stats", "Pareto-smoothed weights and k-hat"),
    ("POT", "ot", "Wasserstein distances"),
    ("deeptime", "deeptime", "TICA"),
    ("h5py", "h5py", "importers of published reaction data"),
    ("matplotlib", "matplotlib", "barrier plots"),
    ("safetensors", "safetensors", "checkpoints"),
    ("threadpoolctl", "threadpoolctl", "one thread for small molecules"),
    ("typer", "typer", "the command line"),
    ("rich", "rich", "progress and colours"),
)
# Distribution, module, what it is for, extra.
_OPTIONAL = (
    ("pyscf", "pyscf", "DFT checks", "dft"),
    ("sella", "sella", "comparison of saddle searches in benchmarks/", "bench"),
    ("mace-torch", "mace", "machine-learned potentials", "mlip"),
)


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        section: heading it stands under. name: what was looked at.
        status: "ok", "absent" (optional, molgen works without) or "fail" (molgen does not work properly).
        detail: version, measured value or fault. advice: what to do; empty when nothing is wrong.
    """

    section: str
    name: str
    status: str
    detail: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Add the subcommand to `app`."""
    app.command(name="doctor")(doctor)


def doctor(as_json: common.Json = False) -> None:
    """Say what is installed and whether it works; exit 0 when molgen is usable, 3 when it is not."""
    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            _print(check, heading=len(checks) == 1 or check.section != checks[-2].section)
    usable = all(check.status != FAIL for check in checks)
    if as_json:
        common.print_json({"usable": usable, "checks": [asdict(check) for check in checks]})
    else:
        typer.echo("\nmolgen is ready." if usable else "\nmolgen is not usable yet: follow the advice above.")
    if not usable:
        raise typer.Exit(common.ExitCode.GATE_FAILED)


def examine() -> Iterator[Check]:
    """All checks, one after another; a fault in one becomes a `Check` and never stops the others."""
    yield Check("Versions", "molgen", OK, f"{molgen.__version__} in {Path(molgen.__file__).parent}")
    yield Check("Versions", "python", OK, f"{platform.python_version()} on {platform.platform()}")
    for distribution, module, purpose in _REQUIRED:
        yield _package(distribution, module, purpose)
    for distribution, module, purpose, extra in _OPTIONAL:
        yield _package(distribution, module, purpose, extra)
    weights = Path(molgen.__file__).parent / "weights"
    yield from _section("Device", "torch devices", _device, _REINSTALL)
    yield from _section("Device", "openmm platforms", _openmm_platforms, "pip install --force-reinstall openmm")
    yield from _section("Weights", "shipped weights", lambda: _weights(weights), _REINSTALL)
    yield from _section("Self-check", "GFN2-xTB", _xtb_forces, "pip install --force-reinstall tblite")
    yield from _section("Self-check", "equivariance", _trunk_equivariance, "pip install --force-reinstall torch")


def _section(section: str, name: str, examiner: Callable[[], Iterator[Check]], advice: str) -> Iterator[Check]:
    """The checks of `examiner`; whatever it raises is reported as a failed check of this name."""
    try:
        yield from examiner()
    except Exception as error:
        yield Check(section, name, FAIL, f"{type(error).__name__}: {error}", advice)


def _package(distribution: str, module: str, purpose: str, extra: str = "") -> Check:
    install = f"pip install '.[{extra}]' in the source folder" if extra else f"pip install {distribution}"
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return Check("Versions", distribution, ABSENT if extra else FAIL, f"not installed ({purpose})", install)
    if extra:  # heavy, and its absence would be no fault: not imported here
        return Check("Versions", distribution, OK, version)
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises anything from ImportError to RuntimeError
        fault = f"{version} cannot be imported ({type(error).__name__}: {error})"
        return Check("Versions", distribution, FAIL, fault, install.replace("install", "install --force-reinstall"))
    return Check("Versions", distribution, OK, version)


def _device() -> Iterator[Check]:
    import torch

    yield Check("Device", "cpu", OK, f"{cores()} cores, {torch.get_num_threads()} torch threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Check("Device", f"cuda:{index}", OK, f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    else:
        built = torch.version.cuda
        why = (
            f"torch {torch.__version__} was built for CUDA {built} and finds no GPU"
            if built
            else "a torch without CUDA"
        )
        yield Check(
            "Device",
            "cuda",
            ABSENT,
            why,
            "nothing needs a GPU, training gains by it; see https://pytorch.org/get-started",
        )


def _openmm_platforms() -> Iterator[Check]:
    import openmm

    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    yield Check("Device", "openmm platforms", OK, ", ".join(names))


def _weights(folder: Path) -> Iterator[Check]:
    from molgen.checkpoint import CONFIG_FILE, load_checkpoint

    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if not found:
        advice = f"{_REINSTALL}, or train your own: molgen train ts --help"
        yield Check("Weights", "(none)", FAIL, f"no weights in {folder}; guesses are sqrt-distance alone", advice)
    for path in found:
        try:
            checkpoint = load_checkpoint(path)
        except MolgenError as error:
            yield Check("Weights", path.name, FAIL, error.what, error.remedy or _REINSTALL)
            continue
        count = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        yield Check("Weights", path.name, OK, f"{count:,} numbers, SHA-256 {checkpoint.hash[:12]} as recorded")


def _xtb_forces() -> Iterator[Check]:
    """GFN2-xTB forces on a distorted water molecule against central differences of its energy."""
    import numpy as np

    from molgen.potentials.xtb import XtbPotential

    water = np.array([[0.0, 0.0, 0.12], [0.05, 0.78, -0.47], [0.0, -0.74, -0.50]])
    potential, step = XtbPotential([8, 1, 1]), 1e-3  # Angstrom
    shifts = step * np.eye(9).reshape(9, 3, 3)
    energy = potential.energy(np.concatenate([water + shifts, water - shifts]))
    _, forces = potential.energy_and_forces(water[None])
    error = float(np.abs((energy[9:] - energy[:9]) / (2 * step) - forces[0].ravel()).max())
    passed = error < 1e-3  # NaN fails too
    detail = f"largest force error {error:.1e} eV/A against finite differences of the energy (allowed 1e-3)"
    yield Check("Self-check", "GFN2-xTB", OK if passed else FAIL, detail, "" if passed else "reinstall tblite")


def _trunk_equivariance() -> Iterator[Check]:
    """A turned and mirrored molecule must give turned and mirrored vectors and the same scalars (shipped weights)."""
    import torch

    trunk, name = _shipped_trunk()
    c, generator = trunk.config, torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def run(turn: torch.Tensor, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
        scalars, vectors, _ = trunk(
            nodes,
            [x @ turn.T + shift for x in geometries],
            torch.ones(nodes.shape[:2], dtype=torch.bool),
            pair_features=pairs if c.pair_inputs else None,
            vector_features=turn @ arrows if c.vector_inputs else None,
            condition=conditions if c.conditions else None,
            time=torch.full((len(nodes),), 0.5, dtype=torch.float64) if c.time else None,
        )
        return scalars, vectors

    nodes, pairs = random(2, 9, c.node_inputs), random(2, 9, 9, c.pair_inputs)
    geometries, arrows = 2 * random(c.geometries, 2, 9, 3), random(2, 9, 3, c.vector_inputs)
    conditions, turn = random(2, c.conditions), torch.linalg.qr(random(3, 3))[0]
    with torch.no_grad():
        scalars, vectors = run(torch.eye(3, dtype=torch.float64), 0.0)
        turned_scalars, turned_vectors = run(turn, 1.0)
    error = max(
        float((a - b).abs().max() / a.abs().max())  # of vectors that are all zero this is NaN, which fails
        for a, b in ((scalars, turned_scalars), (turn @ vectors, turned_vectors))
    )
    passed = error < 1e-8
    detail = f"largest relative rotation error of {name} {error:.1e} in double precision (allowed 1e-8)"
    yield Check("Self-check", "equivariance", OK if passed else FAIL, detail, "" if passed else "reinstall torch")


def _shipped_trunk() -> tuple[Trunk, str]:
    """The trunk of the shipped weights and their name; one with random weights where there are none to load."""
    import torch

    from molgen.nn.trunk import Trunk, TrunkConfig
    from molgen.tsgen.ensemble import networks_of
    from molgen.tsgen.weights import DEFAULT, load_model

    try:
        model = load_model().model
        first = networks_of(model)[0]
        trunk, name = first.trunk, f"'{DEFAULT}'"
    except CheckpointError:  # reported under Weights
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random stream as it was
            torch.manual_seed(0)
            trunk, name = Trunk(TrunkConfig()), "a trunk with random weights"
    return trunk.double().eval(), name


def _print(check: Check, heading: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if heading:
        console.print(f"\n[bold]{check.section}[/bold]")
    mark = {OK: "[green]ok[/green]    ", ABSENT: "[yellow]absent[/yellow]", FAIL: "[red]FAIL[/red]  "}[check.status]
    console.print(f"  {mark} {check.name:<16}", end=" ")
    console.print(check.detail, markup=False)
    if check.advice:
        console.print(f"{'':<26}-> {check.advice}", markup=False)
