"""PLUMED files: what is written reads back, and HILLS sum up to the free energy of the bias."""

from __future__ import annotations

import numpy as np
import pytest

from molgen.cvdiffusion.bias import Axis, WellTemperedBias
from molgen.cvdiffusion.plumed import colvar_text, fes_text, field_name, hills_text, read_table
from molgen.errors import InputError
from molgen.units import KJ_MOL

PHI = Axis("phi 1", "rad", -np.pi, np.pi, 40, 2 * np.pi)
DISTANCE = Axis("distance 0 4", "A", 2.0, 6.0, 30, None)


def filled(hills: int = 60) -> WellTemperedBias:
    b = WellTemperedBias([PHI, DISTANCE], [0.35, 0.3], 6.0, 300.0)
    b.add(np.random.default_rng(0).uniform([-np.pi, 2.0], [np.pi, 6.0], (hills, 2)), 2.0)
    return b


def sum_hills(text: str, grid: list[np.ndarray]) -> np.ndarray:
    """-sum of the Gaussians of a HILLS text in kJ/mol, as PLUMED's tool, without its cut-off."""
    fields, sets, rows = read_table(text)
    column = dict(zip(fields, rows.T, strict=True))
    number = {"pi": np.pi, "-pi": -np.pi}
    exponent = np.zeros((len(rows), *(len(g) for g in grid)))
    names = fields[1 : 1 + len(grid)]
    for d, (name, points) in enumerate(zip(names, grid, strict=True)):
        delta = points[None] - column[name][:, None]
        if f"min_{name}" in sets:
            low, high = (number[sets[f"{end}_{name}"]] for end in ("min", "max"))
            delta -= (high - low) * np.round(delta / (high - low))
        shape = [len(rows)] + [len(points) if e == d else 1 for e in range(len(grid))]
        exponent = exponent + (delta / column[f"sigma_{name}"][:, None]).reshape(shape) ** 2 / 2
    return -np.tensordot(column["height"], np.exp(-exponent), axes=1)


def test_hills_sum_up_to_the_free_energy():
    b = filled()
    free = sum_hills(hills_text(b), [PHI.nodes, DISTANCE.nodes]) * KJ_MOL
    assert free - free.min() == pytest.approx(b.free_energy(), abs=1e-9)
    assert np.ptp(free) > 0.1


def test_hills_file():
    b = filled(5)
    text = hills_text(b)
    lines = text.splitlines()
    assert lines[0] == "#! FIELDS time phi_1 distance_0_4 sigma_phi_1 sigma_distance_0_4 height biasf"
    assert "#! SET min_phi_1 -pi" in lines and "#! SET max_phi_1 pi" in lines and text.endswith("\n")
    # PLUMED refuses to restart from a HILLS file with a constant it does not know
    known = {"min_phi_1", "max_phi_1", "multivariate", "kerneltype"}
    assert {line.split()[2] for line in lines if line.startswith("#! SET")} == known
    fields, sets, rows = read_table(text)
    assert rows.shape == (5, 7) and fields[0] == "time" and rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert rows[:, 1:3] == pytest.approx(b.hills.centres, rel=1e-11)
    assert rows[:, 5] * KJ_MOL * 5 / 6 == pytest.approx(b.hills.heights, rel=1e-11)
    assert (rows[:, 3:5] == [0.35, 0.3]).all() and (rows[:, 6] == 6).all()
    assert (sets["units_energy"], sets["units_length"]) == ("kJ/mol", "A")
    assert (sets["unit_phi_1"], sets["unit_distance_0_4"], sets["multivariate"]) == ("rad", "A", "false")
    empty = read_table(hills_text(WellTemperedBias([PHI], [0.35], 6.0, 300.0)))[2]
    assert empty.shape == (0, 5)


def test_hills_of_a_torsion_in_another_range_are_in_the_domain_of_plumed():
    """METAD refuses to restart from hills in 0 to 2 pi: the domain of TORSION is -pi to pi."""
    whole = WellTemperedBias([Axis("phi 1", "rad", 0.0, 2 * np.pi, 40, 2 * np.pi)], [0.35], 6.0, 300.0)
    whole.add(np.linspace(0.1, 6.2, 30)[:, None], 2.0)
    text = hills_text(whole)
    _, sets, rows = read_table(text)
    assert (sets["min_phi_1"], sets["max_phi_1"]) == ("-pi", "pi")
    assert (rows[:, 1] >= -np.pi).all() and (rows[:, 1] < np.pi).all()
    turns = (rows[:, 1] - whole.hills.centres[:, 0]) / (2 * np.pi)
    assert np.abs(turns - np.round(turns)).max() < 1e-9 and turns.min() < -0.5
    free = sum_hills(text, [whole.axes[0].nodes]) * KJ_MOL
    assert free - free.min() == pytest.approx(whole.free_energy(), abs=1e-9)


def test_colvar_round_trip(tmp_path):
    values = np.random.default_rng(1).normal(0, 3, (20, 2))
    values[0] = [np.pi, np.nan]
    extra = {"bias": np.arange(20.0), "logweight": np.linspace(-2, 2, 20)}
    extra["logweight"][3] = -np.inf
    text = colvar_text(["phi 1", "rg"], ["rad", ""], [2 * np.pi, None], values, extra)
    (tmp_path / "COLVAR").write_text(text)
    fields, sets, rows = read_table(tmp_path / "COLVAR")
    assert fields == ["time", "phi_1", "rg", "bias", "logweight"]
    wrapped = (values[:, 0] + np.pi) % (2 * np.pi) - np.pi
    assert rows[:, 1] == pytest.approx(wrapped, abs=1e-11) and rows[0, 1] == pytest.approx(-np.pi)
    assert rows[:, 2] == pytest.approx(values[:, 1], rel=1e-11, nan_ok=True)
    assert rows[:, 0].tolist() == list(range(20)) and rows[:, 3].tolist() == extra["bias"].tolist()
    assert rows[:, 4] == pytest.approx(extra["logweight"], rel=1e-11)
    assert sets["max_phi_1"] == "pi" and "min_rg" not in sets and sets["unit_rg"] == "none"
    assert np.array_equal(read_table(str(tmp_path / "COLVAR"))[2], rows, equal_nan=True)
    assert values[0, 0] == np.pi  # the caller's array is not wrapped
    assert read_table(colvar_text(["rg"], ["A"], [None], np.zeros((0, 1))))[2].shape == (0, 2)


def test_fes_round_trip():
    edges = np.linspace(-np.pi, np.pi, 5)
    centres = [(edges[1:] + edges[:-1]) / 2, np.array([2.0, 3.0, 4.0])]
    free = np.arange(12.0).reshape(4, 3) * 0.01
    free[1, 2] = np.inf
    text = fes_text(["phi 1", "d"], ["rad", "A"], [2 * np.pi, None], centres, free, np.full((4, 3), KJ_MOL))
    fields, sets, rows = read_table(text)
    assert fields == ["phi_1", "d", "file.free", "error"]
    assert rows[:4, 0] == pytest.approx(centres[0]) and rows[::4, 1].tolist() == [2, 3, 4]  # the first runs fastest
    assert rows[:, 2].reshape(3, 4).T * KJ_MOL == pytest.approx(free, rel=1e-11)
    assert rows[:, 3] == pytest.approx(np.ones(12)) and " inf " in text
    data = text[text.index("unit_d A") :].splitlines()[1:]
    assert [not line for line in data] == [False] * 4 + [True] + [False] * 4 + [True] + [False] * 4
    assert (sets["nbins_phi_1"], sets["periodic_phi_1"]) == ("4", "true")
    assert float(sets["max_phi_1"]) - float(sets["min_phi_1"]) == pytest.approx(2 * np.pi)
    assert (sets["min_d"], sets["max_d"], sets["nbins_d"], sets["periodic_d"]) == ("2", "4", "3", "false")


def test_fes_of_a_bias_and_of_part_of_a_period():
    b = filled()
    names, periods = ["phi 1", "distance 0 4"], [2 * np.pi, None]
    fields, sets, rows = read_table(
        fes_text(names, ["rad", "A"], periods, [PHI.nodes, DISTANCE.nodes], b.free_energy())
    )
    assert (sets["min_phi_1"], sets["max_phi_1"], sets["nbins_phi_1"]) == ("-pi", "pi", "40") and "error" not in fields
    assert sets["nbins_distance_0_4"] == "31" and len(rows) == 40 * 31  # EXTERNAL counts points, as sum_hills does
    part = read_table(fes_text(["phi"], ["rad"], [2 * np.pi], [np.linspace(-1, 1, 5)], np.zeros(5)))[1]
    assert (part["periodic_phi"], part["min_phi"], part["max_phi"], part["nbins_phi"]) == ("false", "-1", "1", "5")
    cube = fes_text(["a", "b", "c"], [""] * 3, [None] * 3, [np.arange(n) for n in (2, 3, 4)], np.zeros((2, 3, 4)))
    assert read_table(cube)[2].shape == (24, 4)


def test_names():
    assert field_name(" distance 0 4 ") == "distance_0_4" and field_name("d(1,2)#") == "d_1_2_"
    assert field_name("end-to-end.z") == "end-to-end.z"
    # to PLUMED the "8" of "r0_1.8" is a component
    assert field_name("coordination 0,1 2 r0=1.8") == "coordination_0_1_2_r0_1_8"
    with pytest.raises(InputError, match="named '  '"):
        field_name("  ")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: colvar_text(["a 1", "a_1"], ["", ""], [None, None], np.zeros((2, 2))), "two fields of one name"),
        (lambda: colvar_text(["time"], [""], [None], np.zeros((2, 1))), "two fields of one name"),
        (lambda: colvar_text(["a"], [""], [None], np.zeros((2, 1)), {"a": np.zeros(2)}), "two fields of one name"),
        (lambda: colvar_text(["a"], [""], [None], np.zeros(2)), "values of shape"),
        (lambda: colvar_text(["a"], [""], [], np.zeros((2, 1))), r"\[1, 0\] entries for 1"),
        (lambda: colvar_text(["a"], [""], [None], np.zeros((2, 1)), {"w": np.zeros(3)}), "w: column of shape"),
        (lambda: fes_text(["a"], [""], [None], [np.arange(3)], np.zeros(4)), "grid of shape"),
        (lambda: fes_text(["a"], [""], [None], [np.arange(3)], np.zeros(3), np.zeros(2)), "grid of shape"),
        (lambda: fes_text(["a"], [""], [None], [np.array([0, 1, 3])], np.zeros(3)), "uneven grid points"),
        (lambda: fes_text(["a"], [""], [None], [np.array([2, 1, 0])], np.zeros(3)), "uneven grid points"),
        (lambda: fes_text(["a"], [""], [None], [np.zeros(0)], np.zeros(0)), "grid points"),
        (lambda: fes_text([], [], [], [], np.zeros(())), "no collective variable"),
        (lambda: read_table("1 2\n"), "line 1: data before the header"),
        (lambda: read_table("# nothing\n"), "no header"),
        (lambda: read_table("#! FIELDS a b\n1 2\n3\n"), "line 3: 1 columns"),
        (lambda: read_table("#! FIELDS a b\n1 x\n"), "(?s)line 2: not a number.*'x'"),
        (lambda: read_table("#! FIELDS a b\n1 2\n#! FIELDS a c\n"), "line 3: the fields change"),
        (lambda: read_table("/nowhere/COLVAR"), "/nowhere/COLVAR: cannot read"),
    ],
)
def test_errors(write, message):
    with pytest.raises(InputError, match=message):
        write()


def test_concatenated_files_read_as_one():
    one = "#! FIELDS time a\n#! SET min_a -pi\n 0 1.5 # a comment\n\n 1 2\n"
    fields, sets, rows = read_table(one + one)
    assert (fields, sets, rows.tolist()) == (["time", "a"], {"min_a": "-pi"}, [[0, 1.5], [1, 2], [0, 1.5], [1, 2]])
