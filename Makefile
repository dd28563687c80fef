# Every target sets up what it needs in .venv. Another Python: make clean; make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.cfg setup.py pyproject.toml finx_streamer/_version.py
DEMO_SECONDS ?= 30
OTHER_PYTHONS ?= 3.12 3.13

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help
help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: $(VENV)/.installed-dev ## run the tests; arguments for pytest: make test ARGS="-k cli"
	$(BIN)/python -m pytest tests $(ARGS)

.PHONY: test-notebook
test-notebook: $(VENV)/.installed-browser ## the live view in JupyterLab and Chromium (Debian: apt install chromium)
	$(BIN)/python -m pytest tests/notebook/test_browser.py $(ARGS)

.PHONY: bench-notebook
bench-notebook: $(VENV)/.installed-browser ## what the live view costs, 2 minutes: table of docs/jupyter.md
	$(BIN)/python -m tests.notebook.measure $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.installed-dev ## run the tests and show what they do not reach
	$(BIN)/python -m pytest tests --cov --cov-report=term $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p finx_streamer

.PHONY: format
format: $(VENV)/.installed-dev ## mend style and format where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: demo
demo: $(VENV)/.installed-cli ## live ticks of a simulated market in this terminal, for 30 s
	$(BIN)/finx-streamer demo --duration $(DEMO_SECONDS)

.PHONY: audit
audit: $(VENV)/.installed-ci ## ask for known vulnerabilities of what we depend on; ARGS=--strict: or fail
	$(BIN)/python .ci/audit.py $(ARGS)

.PHONY: lowest
lowest: $(VENV)/.installed-ci ## quick tests with the lowest versions that setup.cfg allows
	$(BIN)/python .ci/lowest.py cli progress speed > $(VENV)/lowest.txt
	.ci/quick $(BIN)/python $(VENV)-lowest $(VENV)/lowest.txt

.PHONY: versions
versions: $(VENV)/.installed-ci ## quick tests with the other versions of Python, where they are found
	@for version in $(OTHER_PYTHONS); do \
		found=; \
		for python in python$$version $(HOME)/.pyenv/versions/$$version.*/bin/python; do \
			if "$$python" -c '' 2>/dev/null; then found=$$python; fi; \
		done; \
		if [ -n "$$found" ]; then \
			.ci/quick "$$found" "$(VENV)-$$version" || exit 1; \
		else \
			echo "versions: SKIPPED: there is no python$$version here"; \
		fi; \
	done

.PHONY: docs
docs: $(VENV)/.installed-dev ## build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: bench
bench: $(VENV)/.installed-bench ## beside other clients, 15 minutes; a part: make bench ARGS="burst latency --rounds 9"
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-dev $(VENV)/.installed-soak ## 200 pairs, 20,000 ticks/s, faults, 30 minutes: make soak ARGS="--minutes 5"
	$(BIN)/python -m tests.support.soak $(ARGS)

.PHONY: storm
storm: $(VENV)/.installed-dev ## storms of quick faults, over a few pairs, 30 minutes: make storm ARGS="--minutes 5 --seed 7"
	$(BIN)/python -m tests.support.storm $(ARGS)

.PHONY: autobahn
autobahn: $(VENV)/.installed-dev ## the Autobahn test suite against the transport; needs Python 2.7, e.g. pyenv's
	$(BIN)/python tests/autobahn/run.py $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-fuzz ## coverage-guided fuzzing, 10 minutes each of five targets: make fuzz ARGS="frames --seconds 60"
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: import-time
import-time: $(VENV)/.installed-dev ## what `import finx_streamer` costs
	$(BIN)/python tests/benchmarks/import_time.py $(ARGS)

.PHONY: dist
dist: $(VENV)/.installed-dev ## build the wheel and the source archive into dist/
	$(BIN)/python -m build

.PHONY: clean
clean: ## remove whatever the other targets made
	rm -rf $(VENV) $(VENV)-* build dist docs/_build htmlcov .coverage .coverage.* *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An editable install of one extra. The stamp is older than setup.cfg after a change there, and so it runs again.
$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	@echo "installing finx-streamer[$*] into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]" || { \
		echo "make: pip could not install finx-streamer[$*]; its message is above." >&2; \
		echo "make: is PyPI within reach? After a broken install, 'make clean' starts afresh." >&2; \
		exit 1; }
	@touch $@

# Debian ships python3 without the means to make a virtual environment (python3-venv). Then virtualenv is fetched into
# a folder of its own: nothing outside this directory is touched.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: finx-streamer needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not. Try: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "creating $(VENV) …"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		rm -rf $(VENV); \
		echo "python3-venv is missing; trying virtualenv …"; \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target .venv-bootstrap virtualenv && \
		PYTHONPATH=.venv-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV); \
	} || { \
		rm -rf $(VENV); \
		echo "make: no virtual environment could be made. On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
		exit 1; }
