# `make` lists the targets. PYTHON is the interpreter that `make setup` builds .venv with; PYTEST_ARGS
# goes to pytest (make test PYTEST_ARGS='-k model -x'); DATA holds the teacher windows of TREC DL, LISTS its
# candidate lists, CRANFIELD and MMLU those collections; ADAPTER is a trained one; FAULTS names some of those of make
# test-faults.
PYTHON ?= python3
PYTEST_ARGS ?=
LOGDIR ?= runs
DATA ?= data
LISTS ?= $(DATA)
CRANFIELD ?= $(DATA)/cranfield
MMLU ?= $(DATA)/mmlu
ADAPTER ?=
FAULTS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LUCENE := $(VENV)/.lucene
MODEL := models/smollm2-135m-instruct
FIND_JAVA := from data_modules.java import find_java; print("Lucene runs on", find_java())
RESULTS := results $(addprefix results-,base likelihood direct_asked chain_asked direct_lists direct_orders direct chain_lists chain_orders chain dpo dpo_all dpo_on_policy dpo_replaying dpo_forgetful dpo_alone windows_of_4 windows_of_20 short forgetful unpractised judged by_heart)
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.DEFAULT_GOAL := help
.PHONY: help setup lucene model quickstart train-pydocs $(RESULTS) lint test test-faults bench-train bench-rerank \
	bench-stream check-decoding check-results check-streaming tensorboard wheel clean

help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## Create .venv and install the project into it, editable, at the tested versions

# Nothing to do while neither the requirements nor the pins have changed. A .venv that is there is kept,
# whatever PYTHON says; half of one, as where Python lacks ensurepip, is not left behind.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { \
	  echo "lit-rerank needs Python 3.11, 3.12 or 3.13, and '$(PYTHON)' is none of them:" \
	    "$$($(PYTHON) --version 2>&1 | head -n 1). Name one, as in: make setup PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,gguf]'
	@for command in '' fit validate test predict; do $(BIN)/python train.py $$command --help >/dev/null; done  # kept: the next ones are instant
	@touch $@

# Pyserini (400 MB) is of use only beside a Java that suits it, and only the tests ask for it unasked.
lucene: $(STAMP) ## Add Pyserini, where there is a JDK of version 21 or newer
	@if $(BIN)/python -c '$(FIND_JAVA)' 2>/dev/null; then \
	  test $(LUCENE) -nt $(STAMP) || { $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
	    -e '.[dev,gguf,pyserini]' && touch $(LUCENE); }; \
	else echo 'No JDK of version 21 or newer is found: what needs Lucene is left out'; fi

model: $(MODEL)/config.json ## Make models/smollm2-135m-instruct, the small LLM of the tests and examples

# The directory appears whole or not at all, so that one file of it stands for all. It is not made
# again when .venv changes.
$(MODEL)/config.json: | $(STAMP)
	$(BIN)/python scripts/convert_gguf.py $(MODEL)

quickstart: $(STAMP) $(MODEL)/config.json ## See the small LLM learn to rank: runs/quickstart (2 cores: some 20 minutes)
	$(BIN)/python -m scripts.quickstart

train-pydocs: $(STAMP) $(MODEL)/config.json ## The same for hours, in runs/train-pydocs; goes on where it stopped
	$(BIN)/python -m scripts.train_pydocs

results: ## Models measured on TREC DL 2021: runs/results; results-chain makes a row (DATA, LISTS, CRANFIELD, MMLU)

# Before the first row that is trained the data are made (docs/data.md says how long that took), and before a row those that it
# starts from. After that no row that RESULTS.md has (with its minutes) took more than 130 minutes of two cores with AVX-512, in
# float32; with AVX2 alone it takes longer. What is there is kept.
$(RESULTS): $(STAMP) $(MODEL)/config.json
	$(BIN)/python -m scripts.results --data $(DATA) --lists $(LISTS) --cranfield $(CRANFIELD) --mmlu $(MMLU) \
	  $(patsubst results-%,%,$(filter results-%,$@))

lint: $(STAMP) ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-results: $(STAMP) $(MODEL)/config.json ## Measure the shipped adapter again: as expected? (LISTS, MMLU; 2 cores with AVX-512: half an hour)
	$(BIN)/python -m scripts.check_results --lists $(LISTS) --mmlu $(MMLU)

test: $(STAMP) lucene $(MODEL)/config.json lint ## Run everything that CI runs: setup, model, lint, pytest
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-faults: $(STAMP) ## Kill trainings at random moments, resume and compare them: runs/faults.json (2 cores: some 20 minutes)
	$(BIN)/python -m tests.faults $(FAULTS)

bench-train: $(STAMP) $(MODEL)/config.json ## Training beside TRL and the physical limit (DATA=folder: docs/data.md)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.train --data $(DATA)

bench-rerank: $(STAMP) $(MODEL)/config.json ## Decoding beside generation and the physical limit (DATA, LISTS)
	$(BIN)/python -m benchmarks.rerank --data $(DATA) --candidates $(LISTS)/dl21.bm25.top100.jsonl.gz

bench-stream: $(STAMP) $(MODEL)/config.json ## Streamed tokens a second beside those from memory (DATA)
	$(BIN)/python -m benchmarks.stream --data $(DATA)

check-decoding: $(STAMP) $(MODEL)/config.json ## Forced-text decoding against generate, on 200 windows (DATA, ADAPTER)
	$(BIN)/python -m scripts.check_decoding --data $(DATA) $(if $(ADAPTER),--adapter $(ADAPTER))

check-streaming: $(STAMP) $(MODEL)/config.json ## 100,000 streamed records, 2 processes x 2 workers: each once, flat memory
	$(BIN)/python -m scripts.check_streaming

tensorboard: $(STAMP) ## Show the logs of the runs in runs/ (or LOGDIR=folder)
	$(BIN)/tensorboard --logdir $(LOGDIR)

# A stale build/ would put files into the wheel that are long deleted.
wheel: $(STAMP) ## Build the wheel into dist/
	rm -rf build
	$(BIN)/python -m build --wheel --no-isolation

clean: ## Delete what builds and checks leave; .venv, models and runs stay
	rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find lit_rerank data_modules scripts benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
