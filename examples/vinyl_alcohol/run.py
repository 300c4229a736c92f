"""vinyl alcohol -> acetaldehyde; run from this folder."""

import molgen

result = molgen.find_ts("reactant.xyz", "product.xyz")
print(result)
