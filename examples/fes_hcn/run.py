"""The free-energy barrier of HCN -> HNC at 300 K; run from this folder."""

from dataclasses import replace
from pathlib import Path

import molgen
from molgen.units import KCAL_MOL
from molgen.workflows.fes_settings import default_settings

if not Path("runs/ts/summary.json").exists():
    molgen.find_ts("../hcn/reactant.xyz", "../hcn/product.xyz", out="runs/ts", overwrite=True)
settings = default_settings("cartesian")  # as `molgen fes --from-ts` has them
settings = replace(settings, sampler=replace(settings.sampler, rounds=100))
ensemble, barrier = molgen.fes_from_ts("runs/ts", 300.0, settings=settings)
for name in ("forward", "reverse", "reaction"):
    print(name, getattr(barrier, name).scaled(1 / KCAL_MOL, "kcal/mol"))
