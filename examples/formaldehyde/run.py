"""formaldehyde -> CO + H2; run from this folder."""

import molgen

result = molgen.find_ts("reactant.xyz", ["product.xyz", "product_2.xyz"])
print(result)
