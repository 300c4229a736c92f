"""The npz format of reactions: round trip, errors by their text."""

import numpy as np
import pytest

from molgen.data import Reaction, load_npz, save_npz
from molgen.errors import InputError


def _reactions(seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for k, n in enumerate((3, 7, 5)):
        numbers = rng.integers(1, 36, n)
        made.append(
            Reaction(
                numbers=numbers,
                reactant=3 * rng.normal(size=(n, 3)),
                product=3 * rng.normal(size=(n, 3)),
                product_fragments=np.arange(n) % 2,
                reactant_fragments=np.zeros(n, int),
                charge=k - 1,
                spin=int(numbers.sum() - (k - 1)) % 2 + 2 * k,
                name=f"reaction {k}",
                ts=None if k == 1 else 3 * rng.normal(size=(n, 3)),
            )
        )
    return made


def _broken(tmp_path, **changes):
    """A valid file with some arrays replaced (None: removed)."""
    save_npz(tmp_path / "good.npz", _reactions(), "train")
    arrays = dict(np.load(tmp_path / "good.npz"))
    for key, change in changes.items():
        value = change(arrays[key]) if change else None
        arrays.pop(key)
        if value is not None:
            arrays[key] = value
    np.savez(tmp_path / "bad.npz", **arrays)
    return tmp_path / "bad.npz"


def test_round_trip_keeps_everything_to_float32(tmp_path):
    path = tmp_path / "new" / "set.npz"
    save_npz(path, _reactions(), ["train", "val", "train"])
    for a, b in zip(_reactions(), load_npz(path), strict=True):
        assert (b.name, b.charge, b.spin, len(b)) == (a.name, a.charge, a.spin, len(a))
        for key in ("numbers", "product_fragments", "reactant_fragments"):
            assert np.array_equal(getattr(a, key), getattr(b, key))
            assert getattr(b, key).dtype == np.int64
        np.testing.assert_allclose(b.reactant, a.reactant, rtol=1e-6)
        np.testing.assert_allclose(b.product, a.product, rtol=1e-6)
        assert (a.ts is None) == (b.ts is None)
        if a.ts is not None and b.ts is not None:
            np.testing.assert_allclose(b.ts, a.ts, rtol=1e-6)
    assert [r.name for r in load_npz(path, "val")] == ["reaction 1"]
    assert [p.name for p in path.parent.iterdir()] == ["set.npz"]  # no temporary file is left


def test_loaded_arrays_are_read_only(tmp_path):
    save_npz(tmp_path / "set.npz", _reactions(), "a")
    with pytest.raises(ValueError, match="read-only"):
        load_npz(tmp_path / "set.npz")[0].reactant[0] = 0.0


def test_reversed_twice_is_the_same():
    r = _reactions()[0]
    assert r.reversed.reactant is r.product
    assert r.reversed.product_fragments is r.reactant_fragments
    assert r.reversed.reversed.product is r.product
    assert r.reversed.ts is r.ts


def test_shared_set_has_the_documented_counts(shared):
    everything = load_npz(shared / "rdb7_ts.npz" if (shared / "rdb7_ts.npz").exists() else shared / "data/rdb7_ts.npz")
    assert len(everything) == 11286
    assert all(r.ts is not None for r in everything)
    apart = [r for r in everything if r.product_fragments.max() > 0]
    assert len(apart) > 1000
    r = apart[0]
    one, two = r.product[r.product_fragments == 0], r.product[r.product_fragments == 1]
    assert np.linalg.norm(one.mean(0) - two.mean(0)) == pytest.approx(20, abs=6)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"p": None, "p_frag": None}, "missing keys: p, p_frag"),
        ({"ptr": lambda a: a[:-1]}, r"ptr of shape \(3,\) for 3 reactions"),
        ({"ptr": lambda a: a[::-1]}, "rising from 0"),
        ({"z": lambda a: a[:-1]}, r"z has shape \(14,\)"),
        ({"r": lambda a: a[:, :2]}, r"r has shape \(15, 2\)"),
        ({"split": lambda a: a[:1]}, r"split has shape \(1,\)"),
        ({"p": lambda a: np.where(np.arange(15)[:, None] == 4, np.nan, a)}, r"reaction 1 \(id .*: p has a non"),
        ({"ts": lambda a: np.where(np.arange(15)[:, None] == 0, np.inf, a)}, "reaction 0.*ts has a non-finite"),
        ({"ts": lambda a: np.where(np.arange(15)[:, None] == 0, np.nan, a)}, "reaction 0.*ts has a non-finite"),
        ({"z": lambda a: np.where(np.arange(15) == 4, 0, a)}, "reaction 1 .*: atomic number 0\n.*1 to 118"),
        ({"z": lambda a: np.where(np.arange(15) == 4, 119, a)}, "reaction 1 .*: atomic number 119"),
        ({"z": lambda a: np.where(np.arange(15) == 4, -5, a)}, "reaction 1 .*: atomic number -5"),
        ({"ptr": lambda a: a + 0.5}, "of whole numbers rising from 0"),
        ({"p_frag": lambda a: a - 1}, r"reaction 0 .*p_frag is -1\n.*fragments counted from 0"),
        ({"spin": lambda a: a + [0, 0, 1]}, r"reaction 2 .*electrons \(charge 1\) cannot have \d unpaired"),
    ],
)
def test_faulty_files_are_named(tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        load_npz(_broken(tmp_path, **changes))


def test_offsets_written_as_floats_are_read(tmp_path):
    read = load_npz(_broken(tmp_path, ptr=lambda a: a.astype(float)))
    assert [len(r) for r in read] == [len(r) for r in _reactions()]


def test_missing_truncated_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="none.npz: no such file"):
        load_npz(tmp_path / "none.npz")
    save_npz(tmp_path / "set.npz", _reactions(), "train")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "set.npz").read_bytes()[:500])
    with pytest.raises(InputError, match="cut.npz: not a readable npz"):
        load_npz(tmp_path / "cut.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match="text.npz: not an npz file"):
        load_npz(tmp_path / "text.npz")
    with pytest.raises(InputError, match=r"no reaction of split 'test'\n.*'train' \(3\)"):
        load_npz(tmp_path / "set.npz", "test")
    with pytest.raises(InputError, match="2 splits for 3 reactions"):
        save_npz(tmp_path / "other.npz", _reactions(), ["a", "b"])
    assert not (tmp_path / "other.npz").exists()
