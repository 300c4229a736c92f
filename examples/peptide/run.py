"""The tetrapeptide AAGY at 310 K, and how much glycine's left-handed side costs."""

import molgen

ensemble = molgen.sample_peptide("AAGY", n=2000, temperature=310)
print(ensemble.verdict, f"ESS {ensemble.diagnostics.ess:.1%}, k-hat {ensemble.diagnostics.khat:.2f}")
print("radius of gyration", ensemble.expectation("rg"))
print("F(phi 2 > 0) - F(phi 2 < 0)", ensemble.free_energy("phi 2 < 0", "phi 2 > 0"))
