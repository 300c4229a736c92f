"""The force field's view of the next atom, against sums over the terms of the OpenMM System."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import openmm as mm
import pytest
import torch
from torch import Tensor

from molgen.data.peptide import build_peptide
from molgen.data.start import start_structure
from molgen.geometry.internal import closing_angle, place
from molgen.prose import physics
from molgen.prose.layout import Layout
from molgen.prose.physics import CLIP, KNOTS, STEP, local_quadratic, nonbonded, scan
from molgen.prose.rotors import Rotor
from molgen.units import KJ_MOL, NM

MOLECULES = pytest.mark.parametrize("molecule", ["PK", "TP", "W/ace-nme", "RF"])
COULOMB = 138.935458 * KJ_MOL * NM  # eV Angstrom / e^2, OpenMM's
BORN = 1 - 1 / 78.5


@cache
def layout_of(molecule: str) -> Layout:
    sequence, _, cap = molecule.partition("/")
    return Layout.of(build_peptide(sequence, cap or None))


@cache
def positions(molecule: str) -> Tensor:
    """(2, N, 3) by rank: embedded and minimised, then shaken."""
    layout = layout_of(molecule)
    x = torch.from_numpy(np.stack([start_structure(layout.peptide, seed) for seed in (0, 1)]))[:, layout.order]
    return x + 0.04 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Terms:
    """The terms of an OpenMM System, by rank, in eV, Angstrom and radians."""

    def __init__(self, layout: Layout):
        forces = {type(force).__name__: force for force in layout.peptide.system.getForces()}
        rank = layout.z.rank

        def rows(force: str, noun: str, atoms: int) -> list[tuple[list[int], list[float]]]:
            get, count = f"get{noun}Parameters", getattr(forces[force], f"getNum{noun}s")()
            found = [[getattr(v, "_value", v) for v in getattr(forces[force], get)(i)] for i in range(count)]
            return [([int(rank[i]) for i in row[:atoms]], row[atoms:]) for row in found]

        self.bonds = [(a, r * NM, k * KJ_MOL / NM**2) for a, (r, k) in rows("HarmonicBondForce", "Bond", 2)]
        self.angles = [(a, t, k * KJ_MOL) for a, (t, k) in rows("HarmonicAngleForce", "Angle", 3)]
        self.torsions = [(a, m, t, k * KJ_MOL) for a, (m, t, k) in rows("PeriodicTorsionForce", "Torsion", 4)]
        q, sigma, epsilon = np.array([p for _, p in rows("NonbondedForce", "Particle", 0)]).T[:, layout.z.order]
        self.charge, self.sigma = q[:, None] * q, (sigma[:, None] + sigma) / 2 * NM
        self.epsilon = np.sqrt(epsilon[:, None] * epsilon) * KJ_MOL
        for (i, j), (qq, s, e) in rows("NonbondedForce", "Exception", 2):
            self.charge[[i, j], [j, i]], self.epsilon[[i, j], [j, i]] = qq, e * KJ_MOL
            self.sigma[[i, j], [j, i]] = s * NM if e else 1.0

    def springs(self, x: np.ndarray, ranks: set[int], new: set[int]) -> np.ndarray:
        """Energies (...) of the bonds among `ranks` that have an atom in `new`; x (..., N, 3)."""
        return sum(
            (0.5 * k * (np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1) - r) ** 2 for (i, j), r, k in
             self._among(self.bonds, ranks, new)),
            np.zeros(x.shape[:-2]),
        )  # fmt: skip

    def bends(self, x: np.ndarray, ranks: set[int], new: set[int]) -> np.ndarray:
        """The same of the angles."""
        total = np.zeros(x.shape[:-2])
        for (i, j, k), rest, force in self._among(self.angles, ranks, new):
            u, v = x[..., i, :] - x[..., j, :], x[..., k, :] - x[..., j, :]
            cosine = (u * v).sum(-1) / np.linalg.norm(u, axis=-1) / np.linalg.norm(v, axis=-1)
            total += 0.5 * force * (np.arccos(cosine) - rest) ** 2
        return total

    def twists(self, x: np.ndarray, ranks: set[int], new: set[int]) -> np.ndarray:
        """The same of the torsions, impropers among them."""
        total = np.zeros(x.shape[:-2])
        for (i, j, k, m), order, phase, force in self._among(self.torsions, ranks, new):
            b0, b1, b2 = x[..., j, :] - x[..., i, :], x[..., k, :] - x[..., j, :], x[..., m, :] - x[..., k, :]
            n0, n1 = np.cross(b0, b1), np.cross(b1, b2)
            sine = (np.cross(n0, n1) * b1).sum(-1) / np.linalg.norm(b1, axis=-1)
            total += force * (1 + np.cos(order * np.arctan2(sine, (n0 * n1).sum(-1)) - phase))
        return total

    def pairs(self, x: np.ndarray, i: int, point: np.ndarray, before: int) -> tuple[np.ndarray, np.ndarray]:
        """Lennard-Jones and Coulomb energies (...) of atom i at `point` (..., 3) with the atoms of rank < before."""
        square = ((point[..., None, :] - x[..., :before, :]) ** 2).sum(-1)
        s6 = self.sigma[i, :before] ** 6
        u = s6 / (square**3 + 0.02 * s6)
        near = 1 / np.sqrt(square + 0.1) - BORN / np.sqrt(square + 4)
        lj = 4 * self.epsilon[i, :before] * (u**2 - u)
        return lj.sum(-1), (COULOMB * self.charge[i, :before] * near).sum(-1)

    @staticmethod
    def _among(terms: list, ranks: set[int], new: set[int]) -> list:
        return [term for term in terms if ranks.issuperset(term[0]) and new.intersection(term[0])]


@cache
def terms_of(molecule: str) -> Terms:
    return Terms(layout_of(molecule))


# the terms


def test_nonbonded_is_lennard_jones_and_coulomb_where_atoms_are_apart() -> None:
    """Softened at contact, and as in a medium of permittivity 78.5 far away."""
    r = torch.tensor([2.7, 2.9, 3.2, 3.4, 4.0, 6.0], dtype=torch.float64)
    sigma, epsilon, charge = (torch.tensor(v, dtype=torch.float64) for v in (3.0, 0.01, -14.4 * 0.25))
    lj, coulomb = nonbonded(r.square(), sigma, epsilon, charge)
    exact = 4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6)
    assert torch.allclose(lj, exact, rtol=0.12, atol=1e-3)
    assert (coulomb < 0).all() and (coulomb.diff() > 0).all()
    far = torch.tensor([100.0], dtype=torch.float64)
    assert float(nonbonded(far.square(), sigma, epsilon, charge)[1] / (charge / 78.5 / far)) == pytest.approx(
        1, rel=0.05
    )
    assert all(torch.isfinite(e) for e in nonbonded(torch.zeros(()).double(), sigma, epsilon, charge))


@MOLECULES
def test_layout_mixes_and_scales_pairs_as_the_system_does(molecule: str) -> None:
    layout, terms = layout_of(molecule), terms_of(molecule)
    off = ~np.eye(layout.atoms, dtype=bool)
    epsilon = (layout.epsilon * layout.lj).numpy()
    assert np.allclose(epsilon[off], terms.epsilon[off], atol=1e-9)
    assert np.allclose((layout.charges * layout.coulomb).numpy()[off], COULOMB * terms.charge[off], atol=1e-6)
    there = off & (epsilon > 0)
    assert np.allclose(layout.sigma.numpy()[there], terms.sigma[there])


@MOLECULES
def test_completed_terms_add_up_to_the_bonded_energy(molecule: str) -> None:
    """Of all atoms together: OpenMM's own angle and torsion energies, less what the first three atoms have."""
    layout, terms, x = layout_of(molecule), terms_of(molecule), positions(molecule)
    ranks = torch.arange(3, layout.atoms)
    found = physics._bonded(physics._plan(layout, ranks, torch.float64), x, x[:, ranks][:, :, None])[..., 0]
    system = mm.XmlSerializer.deserialize(mm.XmlSerializer.serialize(layout.peptide.system))
    kept = ("HarmonicAngleForce", "PeriodicTorsionForce")
    for force in system.getForces():
        force.setForceGroup(1 if type(force).__name__ in kept else 2)
    context = mm.Context(system, mm.VerletIntegrator(0.001), mm.Platform.getPlatformByName("Reference"))
    constant = sum(k for *_, k in terms.torsions)  # E = k (1 + cos): only the cosine matters to a step
    for frame, energy in zip(x[:, torch.from_numpy(layout.z.rank)], found.sum(1), strict=True):
        context.setPositions(frame.numpy() / NM)
        whole = context.getState(getEnergy=True, groups=2).getPotentialEnergy()._value * KJ_MOL
        first = terms.bends(frame[layout.order].numpy(), {0, 1, 2}, {0})
        assert float(energy) == pytest.approx(whole - constant - float(first), abs=1e-6)
    # and each atom's share is what it completes
    for i in range(3, layout.atoms):
        mine = terms.bends(x.numpy(), set(range(i + 1)), {i}) + terms.twists(x.numpy(), set(range(i + 1)), {i})
        mine = mine - sum(k for *_, k in terms._among(terms.torsions, set(range(i + 1)), {i}))
        assert np.allclose(found[:, i - 3], mine, atol=1e-8)


# narrow coordinates


@MOLECULES
def test_gradient_and_hessian_are_finite_differences_of_the_energy(molecule: str) -> None:
    """In steps of the thermal width at 300 K, of the sum of all terms that an atom completes."""
    layout, terms, x = layout_of(molecule), terms_of(molecule), positions(molecule)
    gradient, hessian = local_quadratic(layout, x, layout.narrow)
    chosen = [k for k, i in enumerate(layout.narrow.tolist()) if k % 4 == 0 or layout.z.closes[i]]
    assert len(chosen) >= 5
    for k in chosen:
        i = int(layout.narrow[k])

        def energy(*steps: int, i: int = i) -> np.ndarray:
            return completed_energy(layout, terms, x, i, [STEP * s for s in steps])

        zero, unit = energy(0, 0, 0), np.eye(3, dtype=int)
        up, down = [energy(*u) for u in unit], [energy(*-u) for u in unit]
        expected = [(a - b) / (2 * STEP) for a, b in zip(up, down, strict=True)]
        assert np.allclose(gradient[:, k], np.clip(np.stack(expected, 1), -CLIP, CLIP), atol=1e-7)
        second = [(a + b - 2 * zero) / STEP**2 for a, b in zip(up, down, strict=True)]
        for a, b in itertools.combinations(range(3), 2):
            second.append((energy(*(unit[a] + unit[b])) - up[a] - up[b] + zero) / STEP**2)
        assert np.allclose(hessian[:, k], np.clip(np.stack(second, 1), -20, 20), atol=1e-6)


def completed_energy(layout: Layout, terms: Terms, x: Tensor, i: int, steps: list[float]) -> np.ndarray:
    """(B,) energy of atom i, `steps` in units of `layout.scale` away from its ideal coordinates."""
    a, b, c = (x[:, int(k)] for k in layout.z.references[i])
    r, second, phi = (
        float(ideal[i]) + step * float(scale)
        for ideal, step, scale in zip(
            (layout.r0, layout.theta0, layout.z.centre), steps, layout.scale[i].tolist(), strict=True
        )
    )
    r, theta, phi = (torch.full((len(x),), v, dtype=torch.float64) for v in (r, second, phi))
    if layout.z.closes[i]:
        theta = closing_angle(r, theta, (b - c).norm(dim=-1))
    y = x.clone()
    y[:, i] = place(a, b, c, r, theta, phi)
    frames, ranks = y.numpy(), set(range(i + 1))
    bonded = terms.springs(frames, ranks, {i}) + terms.bends(frames, ranks, {i}) + terms.twists(frames, ranks, {i})
    lj, coulomb = terms.pairs(frames, i, frames[:, i], i)
    return bonded + lj + coulomb


@MOLECULES
def test_later_atoms_do_not_matter(molecule: str) -> None:
    layout, x = layout_of(molecule), positions(molecule)
    for i in layout.narrow[::5].tolist():
        moved = x.clone()
        moved[:, i:] += 3.0
        ranks = layout.narrow[layout.narrow <= i]
        for one, other in zip(local_quadratic(layout, x, ranks), local_quadratic(layout, moved, ranks), strict=True):
            assert torch.equal(one[:, -1], other[:, -1])
    for rotor in layout.rotors:
        moved = x.clone()
        moved[:, rotor.rank :] += 3.0
        assert torch.equal(scan(layout, rotor, x), scan(layout, rotor, moved))


def test_precision_is_enough_in_float32() -> None:
    layout, x = layout_of("PK"), positions("PK")
    for one, other in zip(
        local_quadratic(layout, x, layout.narrow), local_quadratic(layout, x.float(), layout.narrow), strict=True
    ):
        assert (one - other).abs().max() < 0.02
    for rotor in layout.rotors:
        assert (scan(layout, rotor, x) - scan(layout, rotor, x.float())).abs().max() < 2e-3


# broad dihedrals


@MOLECULES
def test_scan_is_the_energy_of_the_atoms_that_turn(molecule: str) -> None:
    """Place the atom and its siblings at every knot, and sum torsions (impropers too) and pairs."""
    layout, terms, x = layout_of(molecule), terms_of(molecule), positions(molecule)
    for rotor in layout.rotors:
        found = scan(layout, rotor, x).numpy()
        frames = turned(layout, rotor, x)
        new, ranks = set(rotor.atoms.tolist()), {*range(rotor.rank), *rotor.atoms.tolist()}
        bonded = terms.twists(frames, ranks, new)
        if layout.z.closes[rotor.rank]:
            bonded = bonded + terms.bends(frames, ranks, new)
        if rotor.closure is not None:
            bonded = bonded + closing_energy(layout, terms, rotor, frames)
        lj, coulomb = (
            sum(e) for e in zip(*(terms.pairs(frames, k, frames[..., k, :], rotor.rank) for k in new), strict=True)
        )
        for b in range(len(x)):
            free = np.abs(found[b, 0]) < CLIP - 0.01
            assert free.sum() > KNOTS // 4
            constant = bonded[b, free] - found[b, 0, free]
            assert np.ptp(constant) < 1e-6, f"rank {rotor.rank}"
        for channel, expected in ((1, lj), (2, coulomb)):
            assert np.allclose(found[:, channel], np.clip(expected, -CLIP, CLIP), atol=1e-6), f"rank {rotor.rank}"


def turned(layout: Layout, rotor: Rotor, x: Tensor) -> np.ndarray:
    """(B, KNOTS, N, 3) with the rotor at every knot, its lengths and angles ideal."""
    knots = (torch.arange(KNOTS, dtype=torch.float64) * (2 * math.pi / KNOTS) - math.pi) / rotor.fold
    y = x[:, None].repeat(1, KNOTS, 1, 1)
    for k in rotor.atoms.tolist():
        a, b, c = (y[:, :, int(j)] for j in layout.z.references[k])
        r, theta = (t[k].expand(y.shape[:2]) for t in (layout.r0, layout.theta0))
        if layout.z.closes[k]:
            theta = closing_angle(r, theta, (b - c).norm(dim=-1))
        phi = knots if k == rotor.rank else torch.full_like(knots, float(layout.z.centre[k]))
        y[:, :, k] = place(a, b, c, r, theta, phi.expand(y.shape[:2]))
    return y.numpy()


def closing_energy(layout: Layout, terms: Terms, rotor: Rotor, frames: np.ndarray) -> np.ndarray:
    """(B, KNOTS) energy of the angle at the ring's last atom, whose bonds reach X and A."""
    ends = {rotor.rank, int(layout.z.references[rotor.rank, 0])}
    (angle,) = [t for t in terms.angles if {t[0][0], t[0][2]} == ends and t[0][1] > rotor.rank]
    apex = angle[0][1]
    assert layout.z.closes[apex]
    r1, r2 = (next(r for a, r, _ in terms.bonds if set(a) == {apex, end}) for end in ends)
    gap = np.linalg.norm(np.subtract(*(frames[..., end, :] for end in ends)), axis=-1)
    cosine = np.clip((r1**2 + r2**2 - gap**2) / (2 * r1 * r2), -0.9999, 0.9999)
    return 0.5 * angle[2] * (np.arccos(cosine) - angle[1]) ** 2


@MOLECULES
def test_scan_sees_the_branch_to_come_as_one_charge_and_long_range_charges(molecule: str) -> None:
    layout, terms, x = layout_of(molecule), terms_of(molecule), positions(molecule)
    charges = layout.peptide.parameters.charges[layout.z.order]
    for rotor in layout.rotors:
        found, frames, i = scan(layout, rotor, x).numpy(), turned(layout, rotor, x), rotor.rank
        before = frames[..., :i, :]
        far = np.zeros(found[:, 0].shape)
        for k in rotor.atoms.tolist():
            square = ((frames[..., k, None, :] - before) ** 2).sum(-1)
            screened = 1 / np.sqrt(square + 4) - 1 / np.sqrt(square + 16)
            far += (0.3 * COULOMB * terms.charge[k, :i] * screened).sum(-1)
        charge, extent, heavy = rotor.beyond
        centre = frames[..., int(layout.z.references[i, 2]), :]
        direction = frames[..., i, :] - centre
        point = frames[..., i, :] + extent * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
        square = ((point[..., None, :] - before) ** 2).sum(-1).clip(0.01)
        pull = COULOMB * charge * charges[:i]
        near = (pull * (1 / np.sqrt(square + 1) - BORN / np.sqrt(square + 4))).sum(-1)
        further = (0.3 * pull * (1 / np.sqrt(square + 4) - 1 / np.sqrt(square + 16))).sum(-1)
        crowd = (0.05 * math.sqrt(heavy) * np.exp(-square / 8)).sum(-1)
        for channel, expected in enumerate((far, near, further, crowd), start=3):
            assert np.allclose(found[:, channel], np.clip(expected, -CLIP, CLIP), atol=1e-6), (i, channel)


def test_the_branch_of_a_side_chain_is_what_hangs_on_it() -> None:
    layout = layout_of("PK")
    p = layout.peptide
    names = [p.names[i] if p.residue_index[i] == 1 else "" for i in layout.z.order]
    rotors = {names[rotor.rank]: rotor for rotor in layout.rotors}
    cases = {"CG": ("HG2 HG3 CD HD2 HD3 CE HE2 HE3 NZ HZ1 HZ2 HZ3", 3), "CE": ("HE2 HE3 NZ HZ1 HZ2 HZ3", 1)}
    for name, (branch, heavy) in (cases | {"NZ": ("HZ1 HZ2 HZ3", 0)}).items():
        inside = [i for i in range(len(p)) if p.residue_index[i] == 1 and p.names[i] in branch.split()]
        assert rotors[name].beyond[0] == pytest.approx(p.parameters.charges[inside].sum())
        assert rotors[name].beyond[2] == heavy
    assert rotors["HZ1"].beyond == (0.0, 0.0, 0)


def test_static_tensors_are_kept() -> None:
    """Training asks the same of every batch."""
    layout, x = layout_of("TP"), positions("TP")
    local_quadratic(layout, x, layout.narrow)
    before = len(layout.quadratics)
    local_quadratic(layout, x, layout.narrow)
    assert before and len(layout.quadratics) == before
