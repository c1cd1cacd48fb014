PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup lint type test slow robustness demo

# Made again whenever the project's metadata or the pinned versions change.
setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo 'Installing into .venv: some 7 GB, which takes minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

lint: setup type
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup
	$(BIN)/mypy

# A worker on each core; each computes on one.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

# What takes minutes rather than seconds.
slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow --ignore=tests/robustness

# Kills, starves, fuzzes and attacks every command at random, for GEOSEG_ROBUSTNESS_MINUTES.
robustness: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m slow tests/robustness

# A world to train on, a generator, 64 pairs: about five minutes on two cores after the installation.
# Called again after an interruption, training and generation continue; drawing the world begins
# again.
demo: setup
	$(BIN)/python scripts/train.py experiment=demo resume=true
	$(BIN)/python scripts/generate.py gen_ckpt=runs/demo save_dir=runs/demo/synthetic num_samples=64
	$(BIN)/python scripts/generate.py compose.source=exemplars gen_ckpt=runs/demo save_dir=runs/demo/exemplars num_samples=64
