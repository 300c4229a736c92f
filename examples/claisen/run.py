"""Claisen rearrangement, allyl vinyl ether -> 4-pentenal; run from this folder."""

import molgen

result = molgen.find_ts("reactant.xyz", "product.xyz")
print(result)
