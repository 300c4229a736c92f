"""From a `ts` run to a free-energy barrier: the path, the first bias, the barrier's formula, folders that cannot do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read
from ts_cases import EXAMPLES
from typer.testing import CliRunner

from molgen.cli.main import app
from molgen.cvdiffusion.noising import Schedule
from molgen.cvdiffusion.sampler import SamplerSettings
from molgen.errors import InputError
from molgen.geometry.align import rmsd
from molgen.potentials.analytic import DoubleWell
from molgen.reweight.barrier import find_barrier
from molgen.reweight.ensemble import Ensemble
from molgen.reweight.free_energy import CVValues
from molgen.reweight.importance import normalised
from molgen.units import KB, KCAL_MOL, PLANCK
from molgen.variables import values_and_gradients
from molgen.workflows.fes import FesSettings, Problem
from molgen.workflows.fes_from_ts import ReactionPath, barrier_of, even_path, fes_from_ts, read_path
from molgen.workflows.fes_settings import default_settings

T, MASS = 300.0, 2.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `molgen ts` for HCN -> HNC."""
    from molgen.workflows.ts import find_ts

    out = tmp_path_factory.mktemp("ts") / "hcn"
    assert find_ts(EXAMPLES / "hcn/reactant.xyz", EXAMPLES / "hcn/product.xyz", out=out).verified
    return out


@pytest.fixture(scope="module")
def path(finished: Path) -> ReactionPath:
    return read_path(finished)


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "ts"))


def change(folder: Path, name: str, **entries: object) -> None:
    stored = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**stored, **entries}))


def samples(count: int, seed: int, stretch: float) -> tuple[DoubleWell, dict]:
    """Evenly drawn x of a double well with a mass, its weights, and s = (1 + tanh(stretch x))/2 as the coordinate."""
    wells = DoubleWell(barrier=1.0, tilt=0.2)
    x = np.random.default_rng([7, seed]).uniform(-1.7, 1.7, count)
    log_w = -wells.energy_and_forces(np.stack([x, 0 * x, 0 * x], 1)[:, None])[0] / (KB * T)
    curve = np.tanh(stretch * x)
    slopes = 0.5 * stretch * (1 - curve**2) / MASS**0.5
    given = {"s": (1 + curve) / 2, "slopes": slopes, "log_weights": log_w, "weights": normalised(log_w)}
    return wells, given


def exact(wells: DoubleWell) -> tuple[float, float]:
    """Barrier from the left well and free energy of the right one, eV, by quadrature over x."""
    kt, x = KB * T, np.linspace(-2.5, 2.5, 200_001)
    energy = wells.energy_and_forces(np.stack([x, 0 * x, 0 * x], 1)[:, None])[0]
    top = wells.stationary_points()[1]
    left = np.trapezoid(np.where(x < top, np.exp(-energy / kt), 0.0), x)
    height = wells.energy_and_forces([[[top, 0, 0]]])[0][0]
    wavelength = PLANCK / np.sqrt(2 * np.pi * kt * MASS)
    return float(height + kt * np.log(left / wavelength)), wells.basin_free_energy_difference(T)


@pytest.mark.parametrize("stretch", [0.4, 1.0])
def test_barrier_of_a_double_well(stretch: float) -> None:
    """39 kT high; the same whatever the scale of s, within errors that are themselves right."""
    found = []
    for seed in range(8):
        wells, given = samples(4000, seed, stretch)
        found.append(find_barrier(**given, temperature=T, near=0.5))
    barrier, reaction = exact(wells)
    for name, truth in (("forward", barrier), ("reverse", barrier - reaction), ("reaction", reaction)):
        values = np.array([getattr(one, name).value for one in found])
        errors = np.array([getattr(one, name).error for one in found])
        assert abs(values.mean() - truth) < 0.1 * KB * T
        assert 0.5 < values.std(ddof=1) / errors.mean() < 2 and errors.max() < 0.25 * KB * T
    assert all(one.forward.reliable and one.samples > 100 for one in found)
    assert np.std([one.place for one in found]) < 0.01


def test_barrier_without_samples() -> None:
    _, given = samples(2000, 0, 0.4)
    beside = np.abs(given["s"] - 0.5) > 0.05
    gap = find_barrier(**{key: value[beside] for key, value in given.items()}, temperature=T, near=0.5)
    assert gap.forward.value == np.inf and not gap.forward.reliable
    left = given["s"] < 0.5
    with pytest.raises(InputError, match="above s = 0.50"):
        find_barrier(**{key: value[left] for key, value in given.items()}, temperature=T, near=0.5)


def test_even_path() -> None:
    """Unevenly spaced, tumbling frames become even ones that hold still; ends and saddle are kept."""
    rng = np.random.default_rng(0)
    start, turn = rng.standard_normal((5, 3)), rng.standard_normal((5, 3))
    frames = start + np.linspace(0, 1, 40)[:, None, None] ** 3 * turn
    turns = np.linalg.qr(rng.standard_normal((40, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[:, None, None]
    found, saddle = even_path(frames @ turns + rng.standard_normal((40, 1, 3)), 33, 13)
    assert found.shape == (13, 5, 3)
    for here, there in ((0, 0), (saddle, 33), (12, 39)):
        assert float(rmsd(torch.tensor(found[here]), torch.tensor(frames[there]))) < 1e-6
    steps = np.sqrt(((found[1:] - found[:-1]) ** 2).sum(2).mean(1))
    for side in (steps[:saddle], steps[saddle:]):
        assert np.ptp(side) < 0.03 * side.mean()
    with pytest.raises(InputError, match="frame 39 of 40"):
        even_path(frames, 39)
    with pytest.raises(InputError, match="same structure"):
        even_path(np.stack([start, start, start + turn]), 1)


def test_read_path(path: ReactionPath, finished: Path) -> None:
    saddle = read(finished / "ts.xyz", index=0)
    shown = torch.tensor(path.frames[path.saddle])
    assert float(rmsd(shown, torch.tensor(saddle.positions))) < 1e-3
    assert path.barrier / KCAL_MOL == pytest.approx(73.2, abs=0.2) and path.energies.argmax() == path.saddle
    s, z = values_and_gradients(path.cvs, path.frames)[0].T
    assert (np.diff(s) > 0.04).all() and s[0] < 0.02 and s[-1] > 0.98 and np.abs(z).max() < 0.01
    assert path.described == {"from_ts": str(finished), "calculator": "gfn2", "calculator_kwargs": {}, "charge": 0,
                              "spin": 0}  # fmt: skip


def test_settings_and_first_bias(path: ReactionPath) -> None:
    """The cap lies above the barrier, and the first hills leave the path flat to a few kT of 123."""
    given, kt = path.arguments(FesSettings(), T, ["distance 0 1 < 3.3"]), KB * T
    settings = given["settings"]
    assert len(given["walls"]) == 2
    assert settings.cap > path.barrier / kt + 10 and settings.gamma == settings.cap / 2
    assert 0.005 < settings.sampler.width < 0.015 and settings.schedule.end == settings.sampler.width / 2
    problem = Problem.of(path.system, temperature=T, **given)
    path.fill(problem.bias)
    s, energies = path.profile
    level = (energies + problem.bias.evaluate(s[:, None])[0]) / kt
    assert np.ptp(level) < 6 and problem.bias.values.max() < settings.cap * kt


def test_a_cap_below_the_path_is_raised_aloud(path: ReactionPath) -> None:
    said: list[str] = []
    low = replace(default_settings("cartesian"), cap=5.0, gamma=3.0)
    taken = path.arguments(low, T, log=said.append)["settings"]
    assert f"cap {taken.cap:.4g} kT in place of 5, bias factor {taken.gamma:.4g} in place of 3:" in said[0]
    path.arguments(taken, T, log=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("temperature", [0.0, -5.0])
def test_temperature(path: ReactionPath, temperature: float) -> None:
    with pytest.raises(InputError, match=f"temperature {temperature:g} K"):
        path.settings(FesSettings(), temperature)


@pytest.mark.parametrize(("kept", "text"), [
    ([0, -1], "the forward barrier: too few samples at s"),
    ([0], "the barrier: no sample with a weight above s"),
])  # fmt: skip
def test_an_unknown_barrier_is_said(path: ReactionPath, kept: list[int], text: str) -> None:
    """Samples in both basins but not between them, and in one of them."""
    x = np.repeat(path.frames[kept], 40, 0) + 0.01 * np.random.default_rng(0).standard_normal((40 * len(kept), 3, 3))
    s = CVValues("path-s", values_and_gradients(path.cvs[:1], x)[0][:, 0], "")
    ensemble = Ensemble(x, np.zeros(len(x)), np.zeros(len(x)), T, path.potential.numbers, cvs={"path-s": s})
    entries, unknown = path.report(ensemble, None, "kJ/mol")
    assert unknown[0].startswith(text) and ("barrier" in entries) is (len(kept) == 2)
    if entries:
        assert entries["barrier"]["reaction"]["unit"] == "kJ/mol"
        assert not barrier_of(replace(ensemble, at_best="failed"), path).reaction.reliable
    else:
        nothing = barrier_of(ensemble, path)
        assert np.isinf(nothing.forward.value) and not nothing.forward.reliable and text[13:] in nothing.forward.why


def test_without_path_file(folder: Path, path: ReactionPath) -> None:
    """Straight lines between the structures, read again from where they were."""
    (folder / "path.xyz").unlink()
    found = read_path(folder)
    assert found.frames.shape == path.frames.shape
    assert found.energies[found.saddle] == pytest.approx(path.energies[path.saddle], abs=1e-3)
    for side in ("reactant", "product"):
        (folder / f"{side}.xyz").write_text((EXAMPLES / f"hcn/{side}.xyz").read_text())
    change(
        folder, "manifest.json", settings={"reactant": "reactant.xyz", "product": "product.xyz", "folder": str(folder)}
    )
    assert read_path(folder).frames == pytest.approx(found.frames)  # from the folder of that run, not from this one
    change(folder, "manifest.json", settings={"reactant": "gone.xyz", "product": "gone.xyz"})
    with pytest.raises(InputError, match=r"no path.xyz, and gone.xyz and gone.xyz cannot be read again"):
        read_path(folder)


@pytest.mark.parametrize("name", ["manifest.json", "summary.json", "ts.xyz"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"no {name}"):
        read_path(folder)


def test_unusable_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_path(tmp_path / "nowhere")
    kept = json.loads((folder / "summary.json").read_text())
    change(folder, "summary.json", results=[{"verdict": "half"}])
    with pytest.raises(InputError, match="best saddle is half(?s:.*)until its verdict is 'intended'$"):
        read_path(folder)
    (folder / "intermediate.xyz").touch()
    with pytest.raises(InputError, match="or for one step, to or from .*intermediate.xyz"):
        read_path(folder)
    change(folder, "summary.json", results=[])
    with pytest.raises(InputError, match="without a result"):
        read_path(folder)
    (folder / "summary.json").write_text(json.dumps(kept))
    (folder / "path.xyz").write_text("no structure\n")
    with pytest.raises(InputError, match="path.xyz"):
        read_path(folder)
    (folder / "path.xyz").write_text("2\n\nH 0 0 0\nH 0 0 1\n" * 3)
    with pytest.raises(InputError, match="not all of the atoms"):
        read_path(folder)
    change(folder, "manifest.json", settings={"refine": False})
    with pytest.raises(InputError, match=r"a guess, not refined\n(.*\n)*.*without --no-refine"):
        read_path(folder)
    change(folder, "manifest.json", command="peptide")
    with pytest.raises(InputError, match="run of 'peptide'"):
        read_path(folder)


@pytest.fixture(scope="module")
def tiny(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that starts from frames shaken by hand."""

    def shaken(potential, walls, starts, *_):
        return np.repeat(starts, 4, 0) + 0.02 * np.random.default_rng(0).standard_normal((4 * len(starts), 3, 3))

    sampler = replace(SamplerSettings(), rounds=4, draws=32, learn=4, batch=32, pretrain=300)
    quick = FesSettings(sampler=sampler, schedule=Schedule(steps=30), samples=200, hidden=32, stop=False)
    out = tmp_path_factory.mktemp("fes") / "hcn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("molgen.workflows.fes_problem.starting_frames", shaken)
        patch.setattr("molgen.workflows.fes_output._known", lambda barrier: True)  # so few samples make ripples
        ensemble, barrier = fes_from_ts(finished, T, settings=quick, out=out)
    assert len(ensemble) > 200 and 0 < barrier.place < 1
    return out


def test_fewer_frames_than_the_path_has(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="frames = 12") as error:
        fes_from_ts(finished, T, settings=replace(default_settings("cartesian"), frames=12), out=tmp_path / "out")
    assert error.value.expected == "at least 13" and not (tmp_path / "out").exists()


def test_a_tiny_run(finished: Path, tiny: Path) -> None:
    """The barrier is in the summary, the only one, and the path beside it."""
    summary = json.loads((tiny / "summary.json").read_text())
    assert len(summary["results"]) == 2 and summary["barriers"] == [], "a profile's, of what piles up at its ends"
    stored = summary["barrier"]
    assert stored["energy_forward"] == pytest.approx(73.2, abs=0.2)
    assert stored["forward"]["unit"] == "kcal/mol" and set(stored) >= {"forward", "reverse", "reaction", "s"}
    assert len(read(tiny / "path.xyz", index=":")) == 13
    manifest = json.loads((tiny / "manifest.json").read_text())
    assert manifest["settings"]["from_ts"] == str(finished) and "path.xyz" in manifest["files"]


def test_command(finished: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the options become, without the run itself."""
    runner, seen = CliRunner(), {}

    def fake(system, cvs, temperature, **given):
        seen.update(given, system=system, cvs=cvs)
        return None, json.loads((tiny / "summary.json").read_text())

    told = runner.invoke(app, ["fes", "--from-ts", str(finished), "--forecast"])
    assert told.exit_code == 0 and "path-s -0.05 to 1.05" in told.stdout
    for extra in (["--cv", "distance 0 1"], ["--calculator", "gfn1"]):
        refused = runner.invoke(app, ["fes", "--from-ts", str(finished), *extra])
        assert refused.exit_code != 0 and "from-ts" in f"{refused.output}{refused.exception}"
    monkeypatch.setattr("molgen.workflows.fes.run_fes", fake)
    summary = json.loads((tiny / "summary.json").read_text())
    assert (summary["status"] == "ok") == (summary["gate"]["passed"] and not summary["unknown"])
    config = tmp_path / "run.toml"
    config.write_text(f'from-ts = "{finished}"\nwall = "distance 0 1 < 3.3"\nhill-width = 0.03\n')
    done = runner.invoke(app, ["fes", str(config), "--out", str(tmp_path / "fes")])
    assert done.exit_code in (0, 3), done.output
    assert "barrier forward" in done.stdout and "reaction" in done.stdout
    assert len(seen["walls"]) == 2 and seen["settings"].widths == (0.03,) and seen["settings"].cap > 130
    assert isinstance(seen["prior"], ReactionPath) and seen["described"]["charge"] == 0
