#!/bin/sh
# malonaldehyde proton transfer between its two enol forms. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz --out runs/malonaldehyde "$@"
