# make demo   install, then verify a transition state of an example reaction, sample a dipeptide and a free-energy surface
# make test   install with the development tools, then run the whole test suite
# make lint   style, format and types
# make bench  every benchmark; DATA=rdb7_ts.npz names the reactions (hours)
#
# Variables: PYTHON=python3.12   the interpreter that makes .venv (3.11 or newer)
#            PIP_FLAGS="--index-url https://download.pytorch.org/whl/cpu"   for torch alone: a CPU build, without CUDA
#            JOBS=8              test processes

PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2
DATA ?= ../shared/data/rdb7_ts.npz

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint bench clean

demo: .venv/.installed
	$(BIN)/molgen ts examples/claisen/reactant.xyz examples/claisen/product.xyz --out runs/demo --overwrite
	$(BIN)/molgen peptide AG -n 2000 --out runs/demo-peptide --overwrite
	$(BIN)/molgen fes --pretrained ala2 -n 8000 --out runs/demo-fes --overwrite

test: .venv/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS)

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.installed-dev
	$(BIN)/python benchmarks/trunk.py
	$(BIN)/python benchmarks/ts.py --data $(DATA) --out runs/bench-ts
	$(BIN)/python benchmarks/prose.py --out runs/bench-prose
	$(BIN)/python benchmarks/sn2.py --out runs/sn2-umbrella
	for seed in 0 1 2; do $(BIN)/python benchmarks/metadynamics.py sn2 --seed $$seed --out runs/metad-sn2-$$seed; done
	for seed in 0 1; do $(BIN)/python benchmarks/ala2.py --seed $$seed --out runs/ala2-metad-$$seed; done
	$(BIN)/python benchmarks/cv.py --out runs/bench-cv
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/pictures.py

clean:
	rm -rf .venv build dist molgen.egg-info .pytest_cache .ruff_cache .hypothesis

# Stamps: installing again only when the requirements changed. torch comes first and alone, so that the build this
# machine or PIP_FLAGS offers is the one the rest is installed beside.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("molgen needs Python 3.11 or newer; try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing molgen into .venv (a few minutes the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(PIP_FLAGS) torch
	$(PIP) setuptools wheel
	$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
