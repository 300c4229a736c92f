#!/bin/sh
# The free-energy surface of alanine dipeptide over phi and psi. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen fes --pdb ala2.pdb --cv "phi = phi 1" --cv "psi = psi 1" -T 300 --out runs/fes "$@"
