#!/bin/sh
# The tetrapeptide AAGY at 310 K. Further options are passed on: sh run.sh --overwrite
cd "$(dirname "$0")" || exit 1
molgen peptide AAGY -T 310 --observable rg --observable "phi 2" --observable helicity --out runs/aagy "$@"
