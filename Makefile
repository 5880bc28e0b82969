# Every target builds .venv itself when it is missing or the requirements changed.
# Timed targets take DURATION (hours); all training targets take ARGS="…" for further flags.

VENV     := .venv
BIN      := $(VENV)/bin
ARGS     ?=
DURATION ?=
# Python 3.10 to 3.12, whichever comes first; PYTHON=… chooses another.
PYTHON   ?= $(shell for p in python3 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	>/dev/null 2>&1 && echo $$p && break; done)
# Hours of the timed targets, and how they are written in the names of directories.
PPO_HOURS    := $(or $(DURATION),1.0)
IMPALA_HOURS := $(or $(DURATION),0.5)
A2C_HOURS    := $(or $(DURATION),0.5)
short         = $(shell LC_ALL=C printf '%g' $(1) 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help install install-dev install-video test check train train-timed train-parallel train-parallel-timed \
	train-impala train-impala-timed train-impala-parallel train-impala-parallel-timed \
	train-a2c train-a2c-timed train-a2c-parallel train-a2c-parallel-timed \
	train-a3c-parallel train-a3c-parallel-timed \
	evaluate evaluate-ppo evaluate-impala evaluate-a2c evaluate-a3c compare benchmark perf tensorboard clean

help:  ## show this list
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-28s %s\n", $$1, $$2}'
	@echo; echo '  Timed targets take DURATION=hours; all that run a script take ARGS="--flag value …".'
	@echo '  make benchmark takes ARMS="…" SEEDS="…" GAMES="…" DURATION=hours.'

install: $(VENV)/.installed  ## set up .venv with what a run needs

install-dev: $(VENV)/.installed-dev

install-video: $(VENV)/.installed  ## add what --video FILE.mp4 needs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-video.txt

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "error: Python 3.10, 3.11 or 3.12 is needed and was not found; set PYTHON=/path/to/python" >&2; exit 2; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	@echo "Installing requirements.txt (a minute or two)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m rl_bench.nets.kernel_trial || true  # compiles; without a compiler it says so
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-video.txt $(VENV)/.installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-video.txt
	@touch $@

test: $(VENV)/.installed-dev  ## run the test suite
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(VENV)/.installed-dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(VENV)/.installed  ## PPO, sequential, for a number of timesteps
	$(BIN)/python train_ppo_sequential.py --config config/ppo_sequential.yaml $(ARGS)

train-timed: $(VENV)/.installed  ## PPO, sequential, for DURATION hours (default 1.0)
	$(BIN)/python train_timed.py --duration $(PPO_HOURS) --output-dir benchmarks/sequential_$(call short,$(PPO_HOURS))h $(ARGS)

train-parallel: $(VENV)/.installed  ## PPO, rollouts in worker processes, for a number of timesteps
	$(BIN)/python train_ppo_parallel.py --config config/ppo_parallel.yaml $(ARGS)

train-parallel-timed: $(VENV)/.installed  ## the same for DURATION hours (default 1.0)
	$(BIN)/python train_parallel_timed.py --duration $(PPO_HOURS) --output-dir benchmarks/parallel_$(call short,$(PPO_HOURS))h $(ARGS)

train-impala: $(VENV)/.installed  ## IMPALA, sequential, for a number of timesteps
	$(BIN)/python train_impala_sequential.py --config config/impala_sequential.yaml $(ARGS)

train-impala-timed: $(VENV)/.installed  ## IMPALA, sequential, for DURATION hours (default 0.5)
	$(BIN)/python train_impala_sequential_timed.py --duration $(IMPALA_HOURS) \
		--output-dir benchmarks/impala_sequential_$(call short,$(IMPALA_HOURS))h $(ARGS)

train-impala-parallel: $(VENV)/.installed  ## IMPALA, actors in worker processes, for a number of timesteps
	$(BIN)/python train_impala_parallel.py --config config/impala_parallel.yaml $(ARGS)

train-impala-parallel-timed: $(VENV)/.installed  ## the same for DURATION hours (default 0.5)
	$(BIN)/python train_impala_parallel_timed.py --duration $(IMPALA_HOURS) \
		--output-dir benchmarks/impala_parallel_$(call short,$(IMPALA_HOURS))h $(ARGS)

train-a2c: $(VENV)/.installed  ## A2C, sequential, for a number of timesteps
	$(BIN)/python train_a2c_sequential.py --config config/a2c_sequential.yaml $(ARGS)

train-a2c-timed: $(VENV)/.installed  ## A2C, sequential, for DURATION hours (default 0.5)
	$(BIN)/python train_a2c_sequential_timed.py --duration $(A2C_HOURS) \
		--output-dir benchmarks/a2c_sequential_$(call short,$(A2C_HOURS))h $(ARGS)

train-a2c-parallel: $(VENV)/.installed  ## A2C, rollouts in worker processes, for a number of timesteps
	$(BIN)/python train_a2c_parallel.py --config config/a2c_parallel.yaml $(ARGS)

train-a2c-parallel-timed: $(VENV)/.installed  ## the same for DURATION hours (default 0.5)
	$(BIN)/python train_a2c_parallel_timed.py --duration $(A2C_HOURS) \
		--output-dir benchmarks/a2c_parallel_$(call short,$(A2C_HOURS))h $(ARGS)

train-a3c-parallel: $(VENV)/.installed  ## A3C, gradients in worker processes, for a number of timesteps
	$(BIN)/python train_a3c_parallel.py --config config/a3c_parallel.yaml $(ARGS)

train-a3c-parallel-timed: $(VENV)/.installed  ## the same for DURATION hours (default 0.5)
	$(BIN)/python train_a3c_parallel_timed.py --duration $(A2C_HOURS) \
		--output-dir benchmarks/a3c_parallel_$(call short,$(A2C_HOURS))h $(ARGS)

evaluate: $(VENV)/.installed  ## the newest final checkpoint, on training and held-out levels
	$(BIN)/python evaluate_universal.py $(ARGS)

evaluate-ppo evaluate-impala evaluate-a2c evaluate-a3c: $(VENV)/.installed  ## the newest one of an algorithm
	$(BIN)/python evaluate_universal.py --algorithm $(@:evaluate-%=%) $(ARGS)

compare: $(VENV)/.installed  ## sequential_1h with parallel_1h, or all finished timed runs
	$(BIN)/python compare_results.py --output benchmarks/comparison/comparison.png $(ARGS)

benchmark: $(VENV)/.installed  ## train ARMS × SEEDS × GAMES for DURATION hours each, evaluate, compare
	$(BIN)/python run_benchmark.py $(if $(ARMS),--arms $(ARMS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(GAMES),--games $(GAMES)) $(if $(DURATION),--duration $(DURATION)) $(ARGS)

perf: $(VENV)/.installed  ## throughput against other libraries, and the share of this machine's limit
	$(BIN)/python perf/throughput.py --output benchmarks/perf/throughput.json $(ARGS)
	$(BIN)/python perf/limit.py --output benchmarks/perf/limit.json

tensorboard: $(VENV)/.installed  ## show logs/ and benchmarks/ in a browser (port 6006)
	$(BIN)/tensorboard --logdir_spec logs:logs,benchmarks:benchmarks

clean:  ## remove .venv and caches; results stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
