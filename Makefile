# Needs Python 3.11 or newer, and make. Everything else is installed into .venv by these rules.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A file's tests stay together, so that those that share a server start it once. Files run in the
# order of tests/conftest.py, the long ones first, so that all processes end at the same time. There
# are three processes for each core, as tests of real servers wait most of their time.
PROCESSES := $(shell $(PYTHON) -c "import os; print(min(6, (os.cpu_count() or 1) * 3))")
BY_FILE := --dist loadfile --no-loadscope-reorder
PARALLEL := --numprocesses $(PROCESSES) $(BY_FILE)
# A test that fails is run once more, and one that passes then is listed under RERUN: it depends on
# chance, which is a fault to mend, but one that must not keep others' work from landing.
AGAIN := --reruns 1 -r aR
# The fast tests compute all the time: one process a core.
FAST := --numprocesses logical --maxprocesses 4 $(BY_FILE) tests/unit tests/contract tests/test_layout.py tests/test_docs.py

# Python keeps what it has compiled: hundreds of processes would compile the same files again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: serve test test-fast test-postgresql test-pgbouncer test-valkey rehearsal coverage check format config reference clean

# Only what is given here goes before config.yaml and the environment: make serve PORT=9000
given = $(filter command%,$(origin $(1)))
OPTIONS := $(if $(call given,HOST),--host $(HOST)) $(if $(call given,PORT),--port $(PORT))

serve: $(VENV)/.serve  ## start the server, on http://127.0.0.1:8080 unless the settings say else
	$(BIN)/bitinglip serve $(OPTIONS)

test: $(VENV)/.test  ## all tests that this machine can run, without the rehearsal
	$(BIN)/pytest $(PARALLEL) $(AGAIN) -m "not rehearsal"

rehearsal: $(VENV)/.test  ## what a machine with a card is asked, asked on the CPU: a minute and a half
	$(BIN)/pytest -m rehearsal

test-fast: $(VENV)/.test  ## unit and contract tests only, in under a minute
	$(BIN)/pytest $(FAST)

# Each file of SQLite gives way to a database of a PostgreSQL server that the tests start.
test-postgresql test-pgbouncer: test-%: $(VENV)/.test  ## the tests of make test over PostgreSQL, directly or through a pooler
	$(BIN)/pytest $(PARALLEL) $(AGAIN) -m "not rehearsal" --database $*

test-valkey: $(VENV)/.test  ## the tests of Redis over Valkey
	$(BIN)/pytest $(PARALLEL) --redis valkey

coverage: $(VENV)/.test  ## all tests, and which lines and branches they run, in servers and workers too
	$(BIN)/pytest $(PARALLEL) --cov --cov-report=
	$(BIN)/coverage report --sort=cover | sed -n '1,27p; /^TOTAL/p'

check: $(VENV)/.test  ## lint, formatting, import rules, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

config: $(VENV)/.test  ## write config.yaml from the settings
	$(BIN)/python -m scripts.config_text > config.yaml.part && mv config.yaml.part config.yaml

reference: $(VENV)/.test  ## write docs/reference/ from the code
	$(BIN)/python -m scripts.reference

clean:
	rm -rf $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.test: $(VENV)/.serve
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@
