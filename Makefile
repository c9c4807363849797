# Every target sets up all that it needs: Python 3.11+ and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo
TRAIN := $(BIN)/python -m ecos_jax.train --config=configs/digits_manual.py:demo

.PHONY: demo report test slow gpu gpu-check aot compile lint format docs minimum newest wheel

demo: $(READY)
	$(TRAIN) --workdir=$(DEMO)/ecos
	$(TRAIN) --workdir=$(DEMO)/random --config.sampling.method=random
	$(MAKE) --no-print-directory report

report: $(READY)
	$(BIN)/python -m ecos_jax.report --workdir=$(DEMO)/ecos,$(DEMO)/random

# A worker that has nothing left takes over half of the other's tests, in their
# order: so files stay together, and what their tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(READY)
	$(PYTEST) -m "not slow and not gpu and not tpu"

slow: $(READY)
	$(PYTEST) -m "slow and not gpu and not tpu"

# On an NVIDIA GPU, with its driver: the tests that need one, then what it
# computes and how fast. launch/gpu_wheels.sh is for a machine without a network.
gpu:
	$(MAKE) VENV=.venv-gpu gpu-check

gpu-check: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]' 'jax[cuda13]'
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m ecos_jax.gpu_check --output=gpu_check.json

# In environments of their own: the plugins look for their chips at every start.
aot: $(READY)
	.ci/versions pinned $(BIN)/python aot

aot-newest: $(READY)
	.ci/versions highest $(BIN)/python aot

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/shellcheck .ci/run .ci/versions .ci/wheel launch/*.sh launch/slurm.sbatch

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The oldest and the newest dependencies that pyproject.toml allows.
minimum: $(READY)
	.ci/versions lowest-direct $(BIN)/python

newest: $(READY)
	.ci/versions highest $(BIN)/python

wheel: $(READY)
	.ci/wheel $(BIN)

docs: $(READY)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Made anew when the dependencies change; .ready comes last, so that an
# interrupted install is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)
