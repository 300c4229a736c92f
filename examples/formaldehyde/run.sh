#!/bin/sh
# formaldehyde -> CO + H2. Further options are passed on: sh run.sh --overwrite
# Exit code 4 is to be expected: verified, but the calculator fails on one of the guesses.
cd "$(dirname "$0")" || exit 1
molgen ts reactant.xyz product.xyz,product_2.xyz --out runs/formaldehyde "$@"
