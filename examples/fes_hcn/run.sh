#!/bin/sh
# The free-energy barrier of HCN -> HNC at 300 K. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
[ -e runs/ts/summary.json ] || molgen ts ../hcn/reactant.xyz ../hcn/product.xyz --out runs/ts || exit
molgen fes --from-ts runs/ts --rounds 100 --out runs/fes "$@"
