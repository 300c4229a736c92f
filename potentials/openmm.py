"""Any OpenMM System as a Potential, in Angstrom and eV."""

from __future__ import annotations

import copy
import math
import re
from functools import cache

from molgen.errors import CalculatorError, InputError
from molgen.potentials.base import SamplewisePotential
from molgen.units import KJ_MOL, NM, ONE_4PI_EPS0

# What "auto" tries, in this order. A dipeptide of 20 atoms (native GB) takes 0.08 ms on Reference, in double precision,
# and 0.16 ms on CPU; 101 atoms take 0.78 and 0.54 ms.
SMALL = 60  # particles up to which Reference is the fastest
SMALL_PLATFORMS, PLATFORMS = ("Reference", "CPU", "CUDA"), ("CUDA", "CPU", "Reference")
OBC2_OFFSET = 0.009  # nm, the dielectric offset of Onufriev, Bashford, Case, Proteins 2004, 55, 383
OBC2_TERM = "tanh(psi-0.8*psi^2+4.85*psi^3)"  # alpha, beta, gamma of model II of the same paper
SURFACE_TERM = re.compile(r"^([\d.]+)\*\(radius\+0\.14\)\^2\*\(radius/B\)\^6")


class OpenMMPotential(SamplewisePotential):
    """The potential energy of an `openmm.System`: the sum of all its forces; constraints are not applied.

    Args:
        system: the System; kept as given. Its context is created at the first evaluation and then reused.
        topology: names the elements; without it `numbers` is 0 ("unknown") for every particle.
        platform: "auto" or the name of a platform OpenMM has here. "auto" takes the first that starts of CUDA, CPU,
            Reference; up to 60 particles of Reference, CPU, CUDA, since Reference is then the fastest (with
            implicit solvent: after `native_gbsa`).
        properties: platform properties, e.g. {"Threads": "4"}, read when the context is created; by default CUDA runs
            in mixed precision.

    The Reference platform is in double precision; CPU and CUDA sum pair terms in single precision, so their energies
    carry an error of about 1e-3 kJ/mol for a peptide.

    Raises:
        InputError: topology and system disagree, or there is no such platform.
        CalculatorError: the platform exists but does not start here.
    """

    def __init__(self, system, topology=None, platform: str = "auto", properties: dict[str, str] | None = None):
        numbers = [0] * system.getNumParticles()
        if topology is not None:
            numbers = [atom.element.atomic_number if atom.element else 0 for atom in topology.atoms()]
        if len(numbers) != system.getNumParticles():
            raise InputError(
                f"topology has {len(numbers)} atoms, system {system.getNumParticles()} particles",
                where="OpenMMPotential",
                remedy="pass the topology the system was created from",
            )
        super().__init__(numbers)
        self.system, self.properties = system, properties
        self.platform = self._choose(platform)
        self._context = None

    def _evaluate_one(self, positions, forces):
        if self._context is None:
            self._context = self._start(self.platform)
        self._context.setPositions(positions / NM)
        state = self._context.getState(getEnergy=True, getForces=forces)
        energy_unit, force_unit = _units()
        energy = state.getPotentialEnergy().value_in_unit(energy_unit) * KJ_MOL
        if not forces:
            return energy, None
        return energy, state.getForces(asNumpy=True).value_in_unit(force_unit) * (KJ_MOL / NM)

    def _choose(self, wanted: str) -> str:
        require_platform(wanted)
        if wanted != "auto":
            return wanted
        present, reasons = platforms(), []
        candidates = SMALL_PLATFORMS if self.system.getNumParticles() <= SMALL else PLATFORMS
        for name in filter(present.__contains__, candidates):
            try:
                self._start(name)
            except CalculatorError as error:
                reasons.append(error.what)
            else:
                return name
        raise CalculatorError(
            f"no OpenMM platform starts: {'; '.join(reasons) or 'none is installed'}",
            where="platform",
            expected=f"one of {', '.join(PLATFORMS)}",
            remedy="reinstall openmm; python -m openmm.testInstallation says more",
        )

    def _start(self, name: str):
        import openmm as mm

        platform = mm.Platform.getPlatformByName(name)
        properties = self.properties if self.properties is not None else {}
        if name == "CUDA":
            properties = {"Precision": "mixed"} | properties
        # The integrator is required and never steps.
        try:
            return mm.Context(self.system, mm.VerletIntegrator(0.001), platform, properties)
        except mm.OpenMMException as error:
            raise CalculatorError(f"{name}: {error}", where="OpenMM context") from error

    def __getstate__(self):
        return self.__dict__ | {"_context": None}  # a context lives in this process only


def platforms() -> list[str]:
    """Names of the platforms this OpenMM installation has."""
    import openmm as mm

    return [mm.Platform.getPlatform(i).getName() for i in range(mm.Platform.getNumPlatforms())]


def require_platform(wanted: str) -> None:
    """Refuse what `OpenMMPotential` would.

    Raises:
        InputError: `wanted` is neither "auto" nor the name of a platform there is.
    """
    present = platforms()
    if wanted not in ("auto", *present):
        raise InputError(
            f"no OpenMM platform {wanted!r}",
            where="--platform",
            expected=f"auto or one of {', '.join(present)}",
            remedy='pip install "openmm[cuda13]" for CUDA (cuda12 with an older driver)' if wanted == "CUDA" else None,
        )


def native_gbsa(system):
    """A copy of `system` with the CustomGBForce of `implicit/obc2.xml` replaced by OpenMM's own GBSAOBCForce.

    The same model (GB OBC2, with ACE surface area if the original has it) at a fraction of the cost. The CustomGBForce
    stores the offset radius `or` = radius - 0.009 nm and `sr` = scale * `or`, and Coulomb's constant with fewer digits
    than OpenMM, which is folded into the charges, so that both forms agree to rounding.

    Raises:
        InputError: there is no such force, or it holds what the native force cannot express (salt, another GB model).
    """
    import openmm as mm

    swapped = copy.deepcopy(system)
    found = [i for i, force in enumerate(swapped.getForces()) if isinstance(force, mm.CustomGBForce)]
    if len(found) != 1:
        raise InputError(
            f"system has {len(found)} CustomGBForces",
            where="native_gbsa",
            expected="one, as ForceField(..., 'implicit/obc2.xml').createSystem makes",
        )
    custom = swapped.getForce(found[0])
    names = [custom.getPerParticleParameterName(i) for i in range(custom.getNumPerParticleParameters())]
    born = "".join(custom.getComputedValueParameters(i)[1] for i in range(custom.getNumComputedValues()))
    terms = [custom.getEnergyTermParameters(i)[0] for i in range(custom.getNumEnergyTerms())]
    if names != ["charge", "or", "sr"] or OBC2_TERM not in born or not terms:
        raise InputError("the CustomGBForce is not GB OBC2", where="native_gbsa", expected="implicit/obc2.xml")
    constants = dict(re.findall(r"(kappa|solventDielectric|soluteDielectric)=([\d.eE+-]+)", terms[0]))
    if float(constants["kappa"]) != 0:
        raise InputError(
            f"implicit salt (kappa = {constants['kappa']}/nm) has no native form",
            where="native_gbsa",
            remedy="use the system as it is, or create it without implicitSolventKappa",
        )
    surface = [float(match[1]) / (4 * math.pi) for match in map(SURFACE_TERM.match, terms) if match]
    charge_scale = math.sqrt(float(re.findall(r"^-0\.5\*([\d.]+)", terms[0])[0]) / ONE_4PI_EPS0)

    native = mm.GBSAOBCForce()
    native.setSolventDielectric(float(constants["solventDielectric"]))
    native.setSoluteDielectric(float(constants["soluteDielectric"]))
    native.setSurfaceAreaEnergy(sum(surface))
    native.setNonbondedMethod(custom.getNonbondedMethod())
    native.setCutoffDistance(custom.getCutoffDistance())
    native.setForceGroup(custom.getForceGroup())
    for i in range(custom.getNumParticles()):
        charge, offset_radius, scaled_radius = custom.getParticleParameters(i)
        native.addParticle(charge_scale * charge, offset_radius + OBC2_OFFSET, scaled_radius / offset_radius)
    swapped.removeForce(found[0])
    swapped.addForce(native)
    return swapped


@cache  # to divide units takes longer than to read the forces
def _units():
    """OpenMM's units of energies and forces."""
    from openmm import unit

    return unit.kilojoule_per_mole, unit.kilojoule_per_mole / unit.nanometer
