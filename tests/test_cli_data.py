"""`molgen data md`: files, resume, exit codes and bad input."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from molgen.cli import main
from molgen.cli.data_md import picoseconds_of, temperatures_of
from molgen.data.md import load_md
from molgen.data.stereochemistry import cis_bonds
from molgen.errors import InputError

runner = CliRunner()


def md(*arguments):
    return runner.invoke(main.app, ["data", "md", *map(str, arguments)])


def test_runs_and_grows(tmp_path):
    out = tmp_path / "out"
    options = ["--temperatures", "400,600", "--time", "2ps", "--out", out, "--workers", 1]
    result = md("GG", *options, "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary["status"] == "ok" and summary["validity"] == {"wrong_handedness": 0}
    assert summary["results"][0]["frames"] == 2 and summary == json.loads((out / "summary.json").read_text())
    before = (out / "GG.npz").read_bytes()
    assert load_md(out / "GG.npz").temperatures.tolist() == [400, 600]
    assert md("GG", *options).exit_code == 2

    listed = tmp_path / "list.txt"
    listed.write_text("GG\nGA  # new\nAG\n")
    (out / "AG.state.npz").write_text("damaged")
    result = md("--file", listed, *options, "--resume")
    assert result.exit_code == 4, result.stderr
    lines = result.stdout.splitlines()
    assert "kept" in lines[0] and "ns/day" in lines[1] and lines[2].split() == ["AG", "failed"]
    assert "not an npz file" in result.stderr
    assert (out / "GG.npz").read_bytes() == before and load_md(out / "GA.npz").sequence == "GA"
    assert not (out / "GA.state.npz").exists()


def test_a_cis_peptide_bond_to_train_on(tmp_path):
    options = ["--temperatures", "400,500,600", "--time", "1ps", "--out", tmp_path, "--workers", 1, "--cis"]
    assert md("GA", *options).exit_code == 0
    found = load_md(tmp_path / "GA.npz")
    assert cis_bonds(found.peptide, found.positions).sum() == 1
    refused = md("GA", *options[:-1], "--resume")
    assert refused.exit_code == 2 and "'cis' was True and is now False" in refused.stderr
    longer = md("GA", *options, "--resume", "--time", "3ps")
    assert longer.exit_code == 2 and "3 ps given, the run has 1 ps" in longer.stderr
    assert "another --seed and --out" in longer.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no sequences"),
        (["ABA"], "unknown residue 'B' at position 2"),
        (["AA", "--cap", "amide"], "unknown cap 'amide'"),
        (["A"], "give --cap ace-nme"),
        (["AA", "--time", "3"], "'3' is not a simulation time"),
        (["AA", "--temperatures", "600,310"], "kelvins, rising"),
        (["AA", "--workers", "0"], "--workers: 0 given"),
        (["AA", "--cis", "--temperatures", "310,600"], "--cis: 2 replicas"),
        (["AA", "--cis", "--flow", "prose"], "--cis: given beside --flow"),
        (["AA", "--platform", "Abacus"], "no OpenMM platform 'Abacus'"),
        (["--file", "none.txt"], "none.txt: cannot read: No such file"),
        (["AA", "PP", "AHCQ", "--exclude", "EXCLUDE"], "excluded: PP, AHCQ"),
    ],
)
def test_bad_input(tmp_path, arguments, text):
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("PP *\nHCQ\n")
    given = [str(exclude) if argument == "EXCLUDE" else argument for argument in arguments]
    result = md(*given, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.split())
    assert not list((tmp_path / "out").glob("*.npz"))


@pytest.mark.parametrize(("text", "ps"), [("200ps", 200), ("1.5ns", 1500), ("2 us", 2_000_000)])
def test_times(text, ps):
    assert picoseconds_of(text) == ps


@pytest.mark.parametrize("text", ["0.5ps", "0ps", "ps", "-2ns", "1.0005ns"])
def test_no_times(text):
    with pytest.raises(InputError, match="not a simulation time"):
        picoseconds_of(text)


def test_temperatures():
    assert temperatures_of("310") == [310] and temperatures_of("310, 600.5") == [310, 600.5]
    for text in ("", "310,310", "0,5", "warm", "nan", "310,nan", "310,inf"):
        with pytest.raises(InputError, match="--temperatures"):
            temperatures_of(text)
