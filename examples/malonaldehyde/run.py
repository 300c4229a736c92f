"""malonaldehyde proton transfer between its two enol forms; run from this folder."""

import molgen

result = molgen.find_ts("reactant.xyz", "product.xyz")
print(result)
