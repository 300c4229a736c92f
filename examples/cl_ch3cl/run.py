"""Cl- + CH3Cl -> CH3Cl + Cl-; run from this folder."""

import molgen

result = molgen.find_ts("reactant.xyz", "product.xyz", charge=-1)
print(result)
