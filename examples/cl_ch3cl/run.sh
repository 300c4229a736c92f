#!/bin/sh
# Cl- + CH3Cl -> CH3Cl + Cl-. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz --charge -1 --out runs/cl_ch3cl "$@"
