#!/bin/sh
# formaldehyde -> CO + H2. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz,product_2.xyz --out runs/formaldehyde "$@"
