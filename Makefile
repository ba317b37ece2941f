# Everything runs in .venv, which is made on first use. `make` lists the targets.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BENCH_ARGS ?= --quick
WORKERS ?= 2
BIN := .venv/bin
READY := .venv/.ready

# One process per GPU; without a GPU, two processes on the CPU.
GPUS := $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
ifeq ($(GPUS),0)
PROCESSES ?= 2
export DS_ACCELERATOR ?= cpu
else
PROCESSES ?= $(GPUS)
endif

# DeepSpeed's launcher looks for `python` on the path.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup train test slow lint tree picture bench gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with the pinned versions

train: $(READY)  ## train the quickstart recipe
	$(BIN)/deepspeed --num_accelerators $(PROCESSES) launchers/train.py --config recipes/quickstart.yaml

# Tests without processes of their own share the cores, file by file; those of several processes have them alone.
test: lint  ## lint, then every test but the slow ones
	$(BIN)/python -m pytest tests/unit tests/field tests/fuzz tests/pretend -n $(WORKERS) --dist loadfile
	$(BIN)/python -m pytest tests/ranks tests/hosts

slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -m slow

lint: $(READY)  ## ruff, formatting, the import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

tree: $(READY)  ## write README's tree of files, the table of models and those of results anew
	$(BIN)/python -m scripts.readme_tree
	$(BIN)/python -m scripts.models_table
	$(BIN)/python -m scripts.results_page

picture: $(READY)  ## draw docs/pictures/rooms.svg anew, from the import rules
	$(BIN)/python -m scripts.rooms_picture

# These train models that no package brings.
WITH_MODELS := benchmarks/real_models.py

bench: $(READY)  ## every benchmark but those of real models, quickly (BENCH_ARGS= for full length)
	@set -e; for script in $(filter-out benchmarks/_% $(WITH_MODELS),$(wildcard benchmarks/*.py)); do \
	    echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename "$$script" .py) $(BENCH_ARGS); done

# A machine with a card may have torch of its own and no network: without .venv, PYTHON's packages are used.
GPU_PYTHON = $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))
GPU_TESTS = tests/gpu $(shell grep -rl 'mark.gpu' tests/unit)
GPU_RESULTS ?= runs/gpu

gpu:  ## on a GPU: all that only a card can tell, in ten minutes (docs/gpu.md)
	@$(GPU_PYTHON) -m scripts.find_card
	@mkdir -p $(GPU_RESULTS)
	$(GPU_PYTHON) -m pytest -m gpu $(GPU_TESTS) -q -rs --durations 10
	$(GPU_PYTHON) -m benchmarks.roofline --json $(GPU_RESULTS)/roofline.json
	$(GPU_PYTHON) -m benchmarks.train_throughput --device cuda --processes 1 --parts rival --workloads c \
	    --backbones qwen-2.5-0.5b llama-1.3b llama-2-7b --steps 6 --repeats 1 --json $(GPU_RESULTS)/throughput.json

clean:  ## remove what was built; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

# torch comes first: what is built from source later finds it.
$(READY): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: PYTHON: $(PYTHON): must be 3.11 or later: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
