# make demo: set up and run the whole line. make test: set up and pass the tests. Nothing else is needed but Python 3.11 and gcc.
PYTHON ?= python3.11
BIN := .venv/bin
export DO_NOT_TRACK := 1

.PHONY: demo up down test test-slow test-services bench lint setup constraints clean

demo: setup  ## from raw text to a released model; again, and nothing reruns
	$(BIN)/modelyard run recipes/tiny.yaml

up: setup  ## the platform: Prefect, MLflow, workers, watchers, dashboard; docs/OPERATIONS.md
	$(BIN)/modelyard up

down: setup  ## end the platform
	$(BIN)/modelyard down

test: setup  ## everything but what is marked slow or services
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: setup .venv-bench/torchao/ready .venv-bench/llama-cpp/ready  ## learning, kills and resumes of the whole line, 8 and 4 bits, llama.cpp: more than an hour
	$(BIN)/python -m pytest -q -m slow
	PYTHONPATH=$(CURDIR)/.venv-bench/torchao $(BIN)/python -m pytest -q -m '' tests/export/test_quantized.py tests/flows/test_export.py
	PYTHONPATH=$(CURDIR)/.venv-bench/llama-cpp $(BIN)/python -m pytest -q -m '' tests/export/test_gguf.py

test-services: setup  ## what needs servers of its own
	$(BIN)/python -m pytest -q -m services || [ $$? -eq 5 ]

bench: setup .venv-bench/ready .venv-bench/litgpt/ready .venv-bench/trl/ready  ## side by side with others' tools; benchmarks/RESULTS.md keeps what came out
	$(BIN)/python -m benchmarks.data --peer-python .venv-bench/bin/python
	.venv-bench/bin/python -m benchmarks.libraries
	$(BIN)/python -m benchmarks.pretrain --litgpt .venv-bench/litgpt
	$(BIN)/python -m benchmarks.posttrain --trl .venv-bench/trl/bin/python

.venv-bench/ready: benchmarks/requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements.txt
	@touch $@

.venv-bench/litgpt/ready: setup  # its model alone, to run beside the same torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-bench/litgpt litgpt==0.5.13
	@touch $@

.venv-bench/torchao/ready: setup constraints.txt  # beside the environment: transformers would import it in every process
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade -c constraints.txt --target .venv-bench/torchao torchao
	@touch $@

.venv-bench/llama-cpp/ready: | setup  # built from source in about nine minutes, with gcc
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv-bench/llama-cpp llama-cpp-python==0.3.36
	@touch $@

.venv-bench/trl/ready: benchmarks/requirements-trl.txt
	$(PYTHON) -m venv .venv-bench/trl
	.venv-bench/trl/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-trl.txt
	@touch $@

lint: setup
	$(BIN)/ruff check .

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not here, and every tested version is pinned for Python 3.11. Install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@[ -x $(BIN)/python ] || { echo "setting up .venv (about 2.3 GB, two minutes)"; $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

constraints:  ## pin what is installed now
	(head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//') > constraints.new && mv constraints.new constraints.txt

clean:  ## forget every run and its history; data and the environment stay
	rm -rf .modelyard
