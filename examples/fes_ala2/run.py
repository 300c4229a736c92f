"""The free-energy surface of alanine dipeptide over phi and psi; run from this folder."""

import molgen
from molgen.units import KCAL_MOL

system = molgen.system_from_pdb("ala2.pdb", "amber14/protein.ff14SB.xml", solvent="obc2")
ensemble = molgen.sample_cv(system, ["phi = phi 1", "psi = psi 1"], 300.0)
print(ensemble.verdict)
print("phi > 0:", ensemble.free_energy("phi < 0", "phi > 0").scaled(1 / KCAL_MOL, "kcal/mol"))
