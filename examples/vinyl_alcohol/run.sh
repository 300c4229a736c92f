#!/bin/sh
# vinyl alcohol -> acetaldehyde. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz --out runs/vinyl_alcohol "$@"
