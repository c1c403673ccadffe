# Each target does all its set-up itself: a .venv in this folder, filled from requirements/cpu.txt.
# PYTHON= chooses the interpreter (3.11 or newer), PYTEST= adds arguments to pytest. `make test-latest` fills a second
# environment, .venv-latest, from requirements/latest.txt with the interpreter PYTHON312= (3.12 or newer). And `make
# test-peers` fills a third, .venv-peers, from requirements/peers.txt with PYTHON= (3.11 or 3.12).

PYTHON ?= python3
PYTHON312 ?= python3.12
PYTEST ?=
BIN := .venv/bin

# Where it is set, every process would compile the heavy packages anew.
unexport PYTHONDONTWRITEBYTECODE
CODE := data_pipeline megatron_omr rl launch requirements benchmarks tests setup.py
SHELL_SCRIPTS := $(wildcard .ci/run slurm/*.sh slurm/*.sbatch)

.PHONY: help setup demo test test-latest test-peers test-gpu check lint format bench lock clean

help:
	@echo "make demo         the whole recipe on this machine, to a report in runs/demo"
	@echo "make test         all tests on two cores: the light ones, then those that need Ray, vLLM or several ranks"
	@echo "make test-latest  the tests of training, data and RL on the newest Megatron-Core and Python 3.12"
	@echo "make test-peers   losses and advantages against verl's and TRL's, benchmarks against lmms-eval's"
	@echo "make test-gpu     the tests that need a GPU, with the python that PYTHON names"
	@echo "make check        lint, and on all cores (pytest-xdist) the tests that need no Ray, vLLM or several ranks"
	@echo "make lint         what CI checks: ruff, types, spelling, shell scripts"
	@echo "make format       let ruff rewrite what lint would refuse"
	@echo "make bench        compare speed with transformers, tar and memcpy"
	@echo "make setup        only fill .venv"
	@echo "make lock         resolve the locks in requirements/ anew from setup.py"

setup:
	@$(PYTHON) requirements/bootstrap.py

demo: setup
	$(BIN)/omr demo

# First the light tests, which end in minutes, then the others, those of a file and of files that share something one by
# one (tests/helpers/side_by_side.py). pytest's code 2 is Ctrl-C or a file that does not import; code 5 that PYTEST=
# selects nothing of a part: a mistake where it is so in both.
test: setup
	@$(BIN)/python -m pytest --part light -n 2 --dist loadfile $(PYTEST); light=$$?; \
	if [ $$light -eq 2 ]; then exit 2; fi; \
	$(BIN)/python -m pytest --part heavy -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST); heavy=$$?; \
	case "$$light $$heavy" in "0 0" | "0 5" | "5 0") ;; *) \
		echo "make test: failed (light tests: exit code $$light, heavy tests: $$heavy)"; exit 1 ;; esac

# What rests on Megatron-Core, torch, vLLM and Ray: the other tests have nothing that a version could change.
LATEST := tests/latest tests/checkpoint tests/data/encode tests/data/loader \
	tests/rl_loop/test_loop.py::test_weights_train_and_engines_follow \
	$(patsubst %,tests/model/test_%.py,adam buckets checkpoint cpu export fp8 freeze layouts load logprobs losses \
	overlap padding parallel parity recompute rotary step swiglu trainer vlm)

test-latest: setup
	@$(PYTHON312) requirements/bootstrap.py latest
	CUDA_VISIBLE_DEVICES= .venv-latest/bin/python -m pytest $(LATEST) $(PYTEST)

# Needs no other environment: what is compared rests on torch alone.
test-peers:
	@$(PYTHON) requirements/bootstrap.py peers
	CUDA_VISIBLE_DEVICES= .venv-peers/bin/python -m pytest tests/peers $(PYTEST)

# On a GPU machine the packages are the user's own: see docs/gpu.md.
test-gpu:
	$(PYTHON) -m pytest tests/gpu $(PYTEST)

check: lint
	$(BIN)/python -m pytest -n logical -m "not heavy and not slow" $(PYTEST)

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/basedpyright --level error
	$(BIN)/codespell
	$(if $(SHELL_SCRIPTS),$(BIN)/shellcheck $(SHELL_SCRIPTS))

format: setup
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: setup
	$(BIN)/python -m benchmarks

lock:
	@$(PYTHON) requirements/bootstrap.py --lock

clean:
	rm -rf .venv .venv-latest .venv-peers build ./*.egg-info .ruff_cache .pytest_cache
