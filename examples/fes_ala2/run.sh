#!/bin/sh
# The free-energy surface of alanine dipeptide over phi and psi. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen fes --pdb ala2.pdb --cv "phi = torsion 4 6 8 14" --cv "psi = torsion 6 8 14 16" -T 300 --out runs/fes "$@"
