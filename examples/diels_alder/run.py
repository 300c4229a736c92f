"""butadiene + ethene -> cyclohexene; run from this folder."""

import molgen

result = molgen.find_ts(["diene.xyz", "ethene.xyz"], "product.xyz")
print(result)
