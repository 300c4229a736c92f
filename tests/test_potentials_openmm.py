"""OpenMM systems through the protocol: units, platforms, and GB OBC2 in its native form, on real peptides."""

import copy
import io
from functools import partial

import numpy as np
import pytest

from molgen.errors import CalculatorError, InputError
from molgen.potentials import check_potential
from molgen.potentials import openmm as adapter
from molgen.potentials.openmm import OpenMMPotential, native_gbsa, platforms
from molgen.potentials.parallel import ParallelPotential
from molgen.units import KJ_MOL

mm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402


def peptide(sequence: str, **options):
    """(System, Topology, positions (N, 3) in Angstrom) of a zwitterionic peptide in ff14SB and GB OBC2."""
    from rdkit import Chem, RDLogger
    from rdkit.Chem import AllChem

    RDLogger.DisableLog("rdApp.*")
    molecule = Chem.MolFromSequence(sequence)
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    # Without CONECT records OpenMM takes the bonds from its residue templates.
    block = "\n".join(line for line in Chem.MolToPDBBlock(molecule).splitlines() if not line.startswith("CONECT"))
    pdb = app.PDBFile(io.StringIO(block))
    field = app.ForceField("amber14-all.xml", "implicit/obc2.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addHydrogens(field, platform=mm.Platform.getPlatformByName("Reference"))
    system = field.createSystem(modeller.topology, **options)
    return system, modeller.topology, np.array(modeller.positions.value_in_unit(unit.angstrom))


@pytest.fixture(scope="module")
def dipeptide():
    return peptide("AG")


def noisy(positions, count=3):
    return positions + np.random.default_rng(1).normal(size=(count, *positions.shape)) * 0.03


def test_a_peptide_keeps_the_protocol(dipeptide):
    system, topology, positions = dipeptide
    potential = OpenMMPotential(native_gbsa(system), topology, "Reference")
    check_potential(potential, noisy(positions, 2))
    assert potential.numbers.tolist() == [atom.element.atomic_number for atom in topology.atoms()]


def test_units_on_a_spring_worked_by_hand():
    system = mm.System()
    for _ in range(2):
        system.addParticle(1.0)
    spring = mm.HarmonicBondForce()
    spring.addBond(0, 1, 0.1, 1000.0)  # nm, kJ/mol/nm^2
    system.addForce(spring)
    potential = OpenMMPotential(system)
    energy, forces = potential.energy_and_forces([[[0, 0, 0], [0, 0, 1.2]]])
    # 1/2 1000 (0.02 nm)^2 = 0.2 kJ/mol; 1000 * 0.02 nm = 20 kJ/mol/nm = 2 kJ/mol/A; 1 kJ/mol = 0.01036427 eV
    assert energy[0] == pytest.approx(0.2 * 0.01036427, rel=1e-6)
    np.testing.assert_allclose(forces[0, :, 2], [2 * 0.01036427, -2 * 0.01036427], rtol=1e-6)
    assert potential.numbers.tolist() == [0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sasaMethod": None},
        {"soluteDielectric": 2.0, "solventDielectric": 40.0},
        {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": 0.6 * unit.nanometer},
    ],
    ids=lambda options: "-".join(options) or "default",
)
@pytest.mark.parametrize("sequence", ["AG", "DKW"])
def test_native_gb_equals_the_custom_force(sequence, options):
    system, topology, positions = peptide(sequence, **options)
    swapped = native_gbsa(system)
    kinds = [type(force).__name__ for force in swapped.getForces()]
    assert "GBSAOBCForce" in kinds and "CustomGBForce" not in kinds
    assert any(isinstance(force, mm.CustomGBForce) for force in system.getForces())  # the original is untouched
    x = noisy(positions)
    custom, native = (OpenMMPotential(s, topology, "Reference").energy_and_forces(x) for s in (system, swapped))
    np.testing.assert_allclose(native[0] / KJ_MOL, custom[0] / KJ_MOL, atol=1e-6, rtol=0)  # kJ/mol; asked for: 1e-4
    np.testing.assert_allclose(native[1], custom[1], atol=1e-8, rtol=0)
    # and the solvent is really there
    dry = copy.deepcopy(swapped)
    dry.removeForce(kinds.index("GBSAOBCForce"))
    assert (np.abs(OpenMMPotential(dry, topology).energy(x) - native[0]) / KJ_MOL > 100).all()


def test_what_has_no_native_form_is_refused(dipeptide):
    with pytest.raises(InputError, match=r"implicit salt \(kappa = 1"):
        native_gbsa(peptide("AG", implicitSolventKappa=1.0)[0])
    with pytest.raises(InputError, match="system has 0 CustomGBForces\n  expected: one, as ForceField"):
        native_gbsa(native_gbsa(dipeptide[0]))
    system = copy.deepcopy(dipeptide[0])
    custom = next(force for force in system.getForces() if isinstance(force, mm.CustomGBForce))
    custom.setComputedValueParameters(1, "B", "1/(1/or-tanh(0.8*psi)/radius);psi=I*or;radius=or+0.009", 0)
    with pytest.raises(InputError, match="the CustomGBForce is not GB OBC2"):
        native_gbsa(system)


@pytest.mark.parametrize("platform", ["auto", *platforms()])
def test_platforms_agree(dipeptide, platform):
    system, topology, positions = dipeptide
    system, x = native_gbsa(system), noisy(positions)
    try:
        potential = OpenMMPotential(system, topology, platform)
        energy, forces = potential.energy_and_forces(x)
    except CalculatorError as error:
        pytest.skip(f"{platform} is installed but does not start here: {error.what}")
    assert not potential.failures
    reference = OpenMMPotential(system, topology, "Reference").energy_and_forces(x)
    np.testing.assert_allclose(energy / KJ_MOL, reference[0] / KJ_MOL, atol=5e-3)
    np.testing.assert_allclose(forces, reference[1], atol=1e-3)


def test_platforms_that_cannot_be_used(dipeptide, monkeypatch):
    system, topology, _ = dipeptide
    with pytest.raises(InputError, match="no OpenMM platform 'Abacus'\n  expected: auto or one of .*Reference"):
        OpenMMPotential(system, topology, "Abacus")
    monkeypatch.setattr(adapter, "platforms", list)
    with pytest.raises(CalculatorError, match=r"no OpenMM platform starts: none is installed[\s\S]*remedy: reinstall"):
        OpenMMPotential(system, topology)


def test_topology_of_another_molecule_is_refused(dipeptide):
    _, topology, _ = dipeptide
    with pytest.raises(InputError, match="topology has 20 atoms, system 0 particles"):
        OpenMMPotential(mm.System(), topology)


def test_a_bad_sample_leaves_the_context_usable(dipeptide):
    system, topology, positions = dipeptide
    potential = OpenMMPotential(native_gbsa(system), topology)
    x = noisy(positions)
    before = potential.energy(x)
    x[1] *= 1e300
    after = potential.energy(x)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert np.isnan(after[1]) and list(potential.failures) == [1]


def test_a_copy_makes_its_own_context(dipeptide):
    system, topology, positions = dipeptide
    potential = OpenMMPotential(native_gbsa(system), topology)
    energy = potential.energy(positions[None])
    twin = copy.copy(potential)
    assert twin._context is None and twin.energy(positions[None]) == energy


class Threads(OpenMMPotential):
    """Its energy is the number of threads of its context."""

    def _evaluate_one(self, positions, forces):
        super()._evaluate_one(positions, forces)
        assert self._context is not None
        return float(self._context.getPlatform().getPropertyValue(self._context, "Threads")), None


def test_a_worker_of_a_pool_runs_one_thread(dipeptide, monkeypatch):
    """OpenMM's CPU platform takes all cores by itself, in each worker."""
    monkeypatch.delenv("OPENMM_CPU_THREADS", raising=False)
    system, topology, positions = dipeptide
    factory = partial(Threads, native_gbsa(system), topology, "CPU")
    for given, threads in ((None, 1), ("3", 3)):
        if given is not None:
            monkeypatch.setenv("OPENMM_CPU_THREADS", given)
        with ParallelPotential(factory, 1) as pool:
            assert pool.energy(positions[None]).tolist() == [threads]
