#!/bin/sh
# butadiene + ethene -> cyclohexene. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts diene.xyz,ethene.xyz product.xyz --out runs/diels_alder "$@"
