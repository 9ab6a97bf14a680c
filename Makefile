# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow bench study-smoke study methods-table tasks-table transfer-table lint types docs golden clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# Installed again only when the pins, the package's metadata or what is compiled change.
$(READY): requirements.lock pyproject.toml hatch_build.py src/medistill/nets/kernels.c src/medistill/nets/kernels.h
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

install: $(READY) ## create .venv with the pinned versions

demo: $(READY) ## the whole job on generated images, about two minutes; ends by naming the report
	$(BIN)/medistill demo --out demo --overwrite

# Two processes, because much of the time one waits for others; threads that wait must not keep a core from working.
test: $(READY) ## the fast tests
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile

# Two at a time, on one thread each, as threads of both would wait for one another.
test-slow: $(READY) ## the tests that take minutes (real data, full runs)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 2

bench: $(READY) ## how fast we are beside plain loops, as ratios of one run (hours)
	$(BIN)/python benchmarks/bench.py

study-smoke: $(READY) ## a small study on generated images with its report, under three minutes
	$(BIN)/medistill study run studies/smoke.yaml --db study-smoke/smoke.db
	$(BIN)/medistill study report study-smoke/smoke.db

study: $(READY) ## go on with the study that the guidelines come from (hours; needs MEDISTILL_DATA)
	$(BIN)/medistill study run studies/feasibility.yaml --threads 2 --db src/medistill/prediction/basis.db

methods-table: $(READY) ## measure every method on real sets (hours; goes on where it stopped)
	$(BIN)/python benchmarks/methods_table.py

tasks-table: $(READY) ## measure the default on findings, grades and volumes (an hour; goes on where it stopped)
	$(BIN)/python benchmarks/tasks_table.py

transfer-table: $(READY) ## measure the default's packages with other networks (hours; goes on where it stopped)
	$(BIN)/python benchmarks/transfer_table.py

lint: $(READY) ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## static types
	$(BIN)/mypy

docs: $(READY) ## write the pictures (from the phantom) and tables (from measured data) of the docs anew
	$(BIN)/python docs/make_pictures.py
	$(BIN)/python docs/make_results.py

golden: $(READY) ## write the golden numbers anew, after a change that is meant to change them
	$(BIN)/python tests/golden.py

clean: ## remove what was built
	rm -rf $(VENV) src/medistill/nets/kernels-*.so demo study-smoke .pytest_cache .mypy_cache .ruff_cache
