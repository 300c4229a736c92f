"""Many reactions of a list: `molgen ts --file`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from ase import Atoms
from typer.testing import CliRunner

from molgen.cli.main import app
from molgen.errors import CalculatorError, InputError
from molgen.files import read_summary
from molgen.io import write_extxyz
from molgen.run import Run
from molgen.workflows import ts_many
from molgen.workflows.ts_many import Searches, read_entries, search_all, table_of

HCN = "C#N>>[C-]#[NH+]"
QUICK = ["--samples", "1", "--no-lower", "--workers", "1"]
ROOT = Path(__file__).parent.parent


def listed(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "reactions.smi"
    path.write_text("\n".join(lines) + "\n")
    return path


def table(out: Path) -> list[dict[str, str]]:
    with (out / ts_many.TABLE).open() as stream:
        return list(csv.DictReader(stream))


def test_lines_are_smiles_or_files_with_names(tmp_path):
    for name in ("r 1.xyz", "a.xyz", "b.xyz", "p.xyz"):
        (tmp_path / name).write_text(f"1\n\nH 0 0 {len(name)}\n")
    path = listed(
        tmp_path,
        "# C>>C",
        "",
        f"{HCN}\tHCN to HNC",
        HCN,
        "'r 1.xyz' p.xyz",
        f"a.xyz,b.xyz {tmp_path}/p.xyz Cope's two pieces",
    )
    smiles, bare, files, pieces = read_entries(path)
    assert (smiles.sides, smiles.name, smiles.folder(0)) == ({"smiles": HCN}, "HCN to HNC", "0001-HCN-to-HNC")
    assert (bare.name, bare.folder(11)) == ("", "0012") and bare.digest == smiles.digest
    assert files.sides == {"reactant": [str(tmp_path / "r 1.xyz")], "product": [str(tmp_path / "p.xyz")]}
    assert (
        pieces.sides["reactant"] == [str(tmp_path / "a.xyz"), str(tmp_path / "b.xyz")]
        and pieces.name == "Cope's two pieces"
    )
    (tmp_path / "b.xyz").write_text("1\n\nH 0 0 9\n")
    assert read_entries(path)[3].digest != pieces.digest
    path = listed(tmp_path, "'r 1.xyz' p.xyz with a name")
    assert (read_entries(path)[0].digest, read_entries(path)[0].name) == (files.digest, "with a name")


@pytest.mark.parametrize(
    ("lines", "where", "what"),
    [
        ([], "reactions.smi", "holds no reaction"),
        ([HCN, "C#N>[C-]#[NH+] one arrow"], "line 2", "not a reaction SMILES"),
        (["only.xyz"], "line 1", "not a reaction"),
        (["C#N >> [C-]#[NH+]"], "line 1", "not a reaction SMILES"),
        (["# fine", HCN, "r.xyz p.xyz"], "line 3", "no such file: .*r.xyz"),
    ],
)
def test_lines_that_are_no_reaction_are_refused_before_any_search(tmp_path, lines, where, what):
    with pytest.raises(InputError, match=what) as caught:
        read_entries(listed(tmp_path, *lines))
    assert where in str(caught.value)


def test_options_of_one_reaction_and_of_many_exclude_each_other(tmp_path):
    path = listed(tmp_path, HCN)
    for arguments, said in (
        (["--file", str(path), "--smiles", HCN], "--smiles: given beside --file"),
        (["--smiles", HCN, "--workers", "2"], "--workers: has no meaning without --file"),
        (["--smiles", HCN, "--resume"], "--resume: has no meaning without --file"),
    ):
        done = CliRunner().invoke(app, ["ts", *arguments, "--out", str(tmp_path / "out")])
        assert done.exit_code == 2 and not (tmp_path / "out").exists() and said in done.stderr


def test_structures_that_the_list_names_are_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with Run(out, "ts --file", {}) as run, Run(run.path("0001"), "ts", {}) as inner:
        write_extxyz(inner.path("ts.xyz"), [Atoms("HCN", [[0, 0, 0], [1.1, 0, 0], [2.3, 0, 0]])])
    path = listed(tmp_path, f"{out}/0001/ts.xyz {out}/0001/ts.xyz")
    done = CliRunner().invoke(app, ["ts", "--file", str(path), "--out", str(out), "--overwrite", *QUICK])
    assert done.exit_code == 2 and (out / "0001" / "ts.xyz").exists() and "would be removed" in done.stderr


def test_a_list_is_searched_resumed_and_made_a_table(tmp_path):
    out = tmp_path / "out"
    asked = ["ts", "--out", str(out), *QUICK]
    path = listed(tmp_path, f"{HCN} HCN", "C1CC>>C a typing error")
    done = CliRunner().invoke(app, [*asked, "--file", str(path)])
    assert done.exit_code == 4 and "1 of 2 reactions proven" in done.stdout
    first, second = table(out)
    assert (first["outcome"], first["folder"], second["outcome"]) == ("intended", "0001-HCN", "refused")
    assert float(first["barrier_forward_kcal"]) == pytest.approx(73.2, abs=0.2) and second["barrier_forward_kcal"] == ""
    alone = CliRunner().invoke(app, ["ts", "--smiles", HCN, "--out", str(tmp_path / "alone"), *QUICK[:3], "--json"])
    assert json.loads(alone.stdout)["results"] == (read_summary(out / "0001-HCN") or {})["results"]

    path = listed(tmp_path, f"{HCN} HCN", "C=O>>[H][H].[C-]#[O+] mended", "[H]/N=N/[H]>>[H]/N=N\\[H]")
    done = CliRunner().invoke(app, [*asked, "--file", str(path), "--resume", "--json"])
    summary = json.loads(done.stdout)
    assert done.exit_code == 0 and (summary["reactions"], summary["proven"]) == (3, 3)
    assert [row["outcome"] for row in table(out)] == ["intended"] * 3
    assert table(out)[0] == first and (out / "0003" / "barrier.png").exists()

    path = listed(tmp_path, "C=CO>>CC=O", *path.read_text().splitlines()[1:])
    done = CliRunner().invoke(app, [*asked, "--file", str(path), "--resume"])
    assert done.exit_code == 2 and len(table(out)) == 3 and read_summary(out) == summary
    path = listed(tmp_path, "C#N>>N")
    done = CliRunner().invoke(app, [*asked, "--file", str(path), "--overwrite"])
    assert done.exit_code == 4 and [row["outcome"] for row in table(out)] == ["refused"]
    assert not (out / "0003").exists()


def test_what_fails_costs_itself_alone(tmp_path, monkeypatch):
    def failing(smiles: str, **options: Any) -> None:
        raise {"a": CalculatorError("no SCF", where="test"), "b": InputError("bad", where="test")}.get(
            smiles, ValueError("odd")
        )

    monkeypatch.setattr(ts_many, "find_ts", failing)
    entries = [ts_many.Entry(text, "", {"smiles": text}, text) for text in "abc"]
    work = Searches(tmp_path, entries, ["1", "2", "3"], {})
    rows = [work(k) for k in range(3)]
    assert [row["outcome"] for row in rows] == ["failed", "refused", "failed"]
    assert [row["reason"] for row in rows] == ["test: no SCF", "test: bad", "ValueError: odd"]
    assert table_of(rows).splitlines()[3].startswith("3,,c,failed,,")


def test_a_calculator_that_always_fails_is_an_error(tmp_path, monkeypatch):
    def failing(**given: Any) -> None:
        raise CalculatorError("no SCF", where="test")

    def here(self: Any, jobs: Any) -> Any:
        return ((job, self.factory()(*job)) for job in jobs)

    monkeypatch.setattr(ts_many, "find_ts", failing)
    monkeypatch.setattr(ts_many.WorkerPool, "run", here)
    entries = read_entries(listed(tmp_path, f"{HCN} one"))
    with (
        Run(tmp_path / "out", "ts --file", {}) as run,
        pytest.raises(CalculatorError, match="failed on every reaction"),
    ):
        search_all(entries, run, options={"calculator": "gfn2"}, workers=1)
    assert table(tmp_path / "out")[0]["outcome"] == "failed"
