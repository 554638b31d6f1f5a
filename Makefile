# Every target builds what it needs: `make smoke` and `make test` work on a fresh machine with Python and make.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help smoke validate test test-gpu lab lint bench bench-gpu bench-selection selftest mutants test-versions

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

smoke: .venv/installed  ## run the production smoke here: verdict and HTML report
	$(BIN)/python -m nsa_lib run smoke

validate: .venv/installed  ## run the whole checklist here, then Go or No-Go over all
	$(BIN)/python -m nsa_lib run all

test: .venv/tested  ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-gpu: .venv/tested  ## run the tests that need a GPU, in one process
	$(BIN)/python -m tests.gpu

lab: .venv/installed  ## open JupyterLab on the project; its address is printed
	$(BIN)/jupyter lab --no-browser --ServerApp.root_dir=. --ServerApp.contents_manager_class=nsa_lib.report.lab.ProjectContents --ContentsManager.pre_save_hook=nsa_lib.report.lab.strip_outputs $(if $(filter 0,$(shell id -u)),--allow-root)

test-versions: .venv/tested  ## try Python 3.10 to 3.13, torch's floor and the newest
	$(BIN)/python -m tests.versions

lint: .venv/tested  ## check style, of notebooks too, and the oldest Python
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/vermin --quiet --no-tips --target=3.10- nsa_lib

selftest: .venv/installed  ## plant every fault, each fifth mutant: a verdict turns red
	$(BIN)/python -m nsa_lib selftest
	$(BIN)/python -m tests.mutation --every 5

mutants: .venv/installed  ## plant wrong changes in copies of the code: each is found
	$(BIN)/python -m tests.mutation

bench: .venv/tested  ## measure what the promises of speed and cost rest on
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench_trend
	$(BIN)/python -m tests.bench_false_alarms
	$(BIN)/python -m tests.bench_own_false_alarms
	$(BIN)/python -m tests.bench_fleet

bench-gpu: .venv/tested  ## measure every attention against dense on this GPU
	$(BIN)/python -m tests.bench_gpu

bench-selection: .venv/tested  ## train on text for ten minutes: selections for bench-gpu
	$(BIN)/python -m tests.bench_selection

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

.venv/tested: .venv/installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
