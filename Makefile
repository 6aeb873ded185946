# Two commands do everything on a machine with Python >= 3.10, make and git:
#   make bench   environment, main job, table and pictures
#   make test    environment, lint, types, tests
# and `make published` runs the published comparison again, within the hour.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench test lint types tests docs linkcheck published speed digits clean

bench: $(READY)
	$(BIN)/sdekit bench

test: lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

tests: $(READY)
	$(BIN)/pytest -n auto

docs: $(READY)
	$(BIN)/sphinx-build -W -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

# Links to other sites, too: needs a network.
linkcheck: $(READY)
	$(BIN)/sphinx-build -q -b linkcheck docs docs/_build/linkcheck

# Round-off on another machine grows along unstable paths; above the floors errors agree to 5 %.
published: $(READY)
	$(BIN)/sdekit bench --config published --jobs 2 --out results/published
	$(BIN)/sdekit bench diff benchmarks/results/published.json results/published --rtol 0.05

speed: $(READY)
	$(BIN)/python benchmarks/speed/run.py

digits: $(READY)
	$(BIN)/python benchmarks/train_digits.py

# torch first and by its exact version: a range could bring a build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench,docs,dev]'
	@touch $@

clean:
	rm -rf $(VENV) docs/_build docs/_generated docs/examples results
