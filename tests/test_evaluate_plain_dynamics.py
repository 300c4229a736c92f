"""`molgen evaluate prose` against dynamics that never turned a peptide bond."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from molgen.cli import main
from molgen.data.md import load_md, save_md
from molgen.data.remd import generate_md


def test_the_share_of_cis_bonds_is_that_of_the_starts(tmp_path: Path) -> None:
    file = tmp_path / "GG.npz"
    generate_md("GG", file, 3, temperatures=(310.0, 450.0, 600.0), hot=0, settle=1, cis=True)
    found = load_md(file)
    found = replace(found, positions=found.positions[::-1])  # the third replica is the one that began with it

    def notes(flow: str) -> list[str]:
        save_md(file, replace(found, flow=flow))
        out = str(tmp_path / f"out{flow}")
        result = CliRunner().invoke(
            main.app, ["evaluate", "prose", "--json", "--data", str(file), "--out", out, "-n", "20"]
        )
        assert result.exit_code == 0, result.stderr
        return [note for note in json.loads(result.stdout)["results"][0]["notes"] if "cis" in note]

    (note,) = notes("")
    assert note.startswith("3 of 3 frames of the dynamics have a peptide bond cis, not before proline, in the share")
    assert notes("0123") == []
