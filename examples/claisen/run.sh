#!/bin/sh
# Claisen rearrangement, allyl vinyl ether -> 4-pentenal. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz --out runs/claisen "$@"
