# Every target builds what it needs: `make smoke` and `make test` work on a fresh machine with Python and make.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help smoke validate test test-gpu lab lint bench bench-gpu bench-selection selftest mutants test-versions

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

smoke: .venv/installed  ## run the production smoke on this machine: verdict and HTML report
	$(BIN)/python -m nsa_lib run smoke

validate: .venv/installed  ## run the whole checklist on this machine: a line a notebook, then Go or No-Go over all
	$(BIN)/python -m nsa_lib run all

test: .venv/tested  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-gpu: .venv/tested  ## run the tests that need this machine's GPU, in one process
	$(BIN)/python -m tests.gpu

lab: .venv/installed  ## open JupyterLab on the project; no browser is started, the address with its token is printed
	$(BIN)/jupyter lab --no-browser --ServerApp.root_dir=. --ServerApp.contents_manager_class=nsa_lib.report.lab.ProjectContents --ContentsManager.pre_save_hook=nsa_lib.report.lab.strip_outputs $(if $(filter 0,$(shell id -u)),--allow-root)

test-versions: .venv/tested  ## read a run with Python 3.10 to 3.13, make one with torch's floor and the newest, as far as they are here
	$(BIN)/python -m tests.versions

lint: .venv/tested  ## check style, of the notebooks too, and that nothing needs a newer Python than the oldest promised
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --quiet --no-tips --target=3.10- nsa_lib

selftest: .venv/installed  ## plant every seeded fault, and each fifth mutant of the code, and show that a verdict turns red
	$(BIN)/python -m nsa_lib selftest
	$(BIN)/python -m tests.mutation --every 5

mutants: .venv/installed  ## plant small wrong changes in copies of the source and show that each turns the smoke red
	$(BIN)/python -m tests.mutation

bench: .venv/tested  ## measure what the promises of speed and cost rest on
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_trend
	$(BIN)/python -m tests.bench_false_alarms
	$(BIN)/python -m tests.bench_own_false_alarms
	$(BIN)/python -m tests.bench_fleet

bench-gpu: .venv/tested  ## measure every attention against dense on this machine's GPU: table, chart, JSON
	$(BIN)/python -m tests.bench_gpu

bench-selection: .venv/tested  ## train on text for ten minutes on this machine's GPU and keep what the model selects, for bench-gpu
	$(BIN)/python -m tests.bench_selection

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
