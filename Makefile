# Every target installs what it needs into .venv. For another Python: make clean; make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.cfg setup.py pyproject.toml finx_streamer/_version.py
DEMO_SECONDS ?= 30
# Many tests wait more than they compute, so two workers per core pay off. One process, for a debugger: WORKERS=0
WORKERS ?= 4
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
OTHER_PYTHONS ?= 3.12 3.13

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help
help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: test
test: $(VENV)/.installed-dev $(VENV)/.nats ## run the tests, except the slow ones; with pytest's options: make test ARGS="-k cli"
	$(PYTEST) -m "not slow" tests $(ARGS)

.PHONY: test-notebook
test-notebook: $(VENV)/.installed-browser ## test the live view in JupyterLab and Chromium (Debian: apt install chromium)
	$(BIN)/python -m pytest tests/notebook/test_browser.py $(ARGS)

.PHONY: bench-notebook
bench-notebook: $(VENV)/.installed-browser ## measure the cost of the live view, 2 minutes: the table in docs/jupyter.md
	$(BIN)/python -m tests.notebook.measure $(ARGS)

.PHONY: coverage
coverage: $(VENV)/.installed-dev $(VENV)/.nats ## run the tests and show the lines they miss
	$(PYTEST) -m "not slow" tests --cov --cov-report=term $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p finx_streamer

.PHONY: format
format: $(VENV)/.installed-dev ## fix style and format, as far as tools can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: demo
demo: $(VENV)/.installed-cli ## show live ticks of a simulated market in this terminal, 30 s
	$(BIN)/finx-streamer demo --duration $(DEMO_SECONDS)

.PHONY: audit
audit: $(VENV)/.installed-ci ## look for known vulnerabilities in the dependencies; with ARGS=--strict, an unreachable service fails
	$(BIN)/python .ci/audit.py $(ARGS)

.PHONY: lowest
lowest: $(VENV)/.installed-ci ## run quick tests with the lowest dependency versions that setup.cfg allows
	$(BIN)/python .ci/lowest.py cli pandas polars progress > $(VENV)/lowest.txt
	.ci/quick $(BIN)/python $(VENV)-lowest $(VENV)/lowest.txt

.PHONY: versions
versions: $(VENV)/.installed-ci ## run quick tests with the other Python versions installed here
	@for version in $(OTHER_PYTHONS); do \
		found=; \
		for python in python$$version $(HOME)/.pyenv/versions/$$version.*/bin/python; do \
			if "$$python" -c '' 2>/dev/null; then found=$$python; fi; \
		done; \
		if [ -n "$$found" ]; then \
			.ci/quick "$$found" "$(VENV)-$$version" || exit 1; \
		else \
			echo "versions: SKIPPED: python$$version is not installed here"; \
		fi; \
	done

.PHONY: docs
docs: $(VENV)/.installed-dev ## build the documentation into docs/_build/html, run its notebooks and check its links
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/check_links.py
	@echo "docs/_build/html/index.html"

.PHONY: pictures
pictures: $(VENV)/.installed-browser ## record docs/images, 2 minutes; without Chromium: make pictures ARGS="terminal plot"
	$(BIN)/python -m tests.support.pictures $(ARGS)

.PHONY: docs-links
docs-links: $(VENV)/.installed-dev ## check the documentation's links to other sites; needs a network
	$(BIN)/sphinx-build -q -b linkcheck -D nb_execution_mode=off docs docs/_build/links

.PHONY: docs-pictures
docs-pictures: $(VENV)/.installed-browser docs ## draw every page at two widths in both themes, into build/screenshots
	$(BIN)/python -m tests.support.screenshots $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-bench $(VENV)/.nats ## compare with other clients, 40 minutes; a part of it: make bench ARGS="burst latency --rounds 9"
	$(BIN)/python tests/benchmarks/run.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-dev $(VENV)/.installed-soak ## run 200 pairs at 20,000 ticks/s with faults, 30 minutes: make soak ARGS="--minutes 5"
	$(BIN)/python -m tests.support.soak $(ARGS)

.PHONY: soak-live
soak-live: $(VENV)/.installed-dev ## run live loopback exchanges with faults on both sides, 20 minutes: make soak-live ARGS="--minutes 5"
	$(BIN)/python -m tests.support.live_soak $(ARGS)

.PHONY: storm
storm: $(VENV)/.installed-dev ## run storms of fast faults on a few pairs, 30 minutes: make storm ARGS="--minutes 5 --seed 7"
	$(BIN)/python -m tests.support.storm $(ARGS)

.PHONY: torture
torture: $(VENV)/.installed-dev ## kill a recorder of 20 pairs 200 times, fill its disk, set its clock, 8 minutes: make torture ARGS="--kills 20"
	$(BIN)/python -m tests.support.torture $(ARGS)

.PHONY: chaos
chaos: $(VENV)/.installed-dev $(VENV)/.nats ## kill and stop publishers, NATS nodes and gateways, 20 minutes: make chaos ARGS="--minutes 5"
	$(BIN)/python -m tests.support.chaos $(ARGS)

.PHONY: autobahn
autobahn: $(VENV)/.installed-dev ## run the Autobahn test suite against the WebSocket client; needs Python 2.7, for example pyenv's
	$(BIN)/python tests/autobahn/run.py $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-fuzz ## fuzz six targets, guided by coverage, 10 minutes each: make fuzz ARGS="frames --seconds 60"
	$(BIN)/python -m tests.fuzz $(ARGS)

.PHONY: import-time
import-time: $(VENV)/.installed-dev ## measure the cost of `import finx_streamer`
	$(BIN)/python tests/benchmarks/import_time.py $(ARGS)

.PHONY: dist
dist: $(VENV)/.installed-dev ## build the wheel and the source archive into dist/
	$(BIN)/python -m build

.PHONY: clean
clean: ## remove everything that the other targets created
	rm -rf $(VENV) $(VENV)-* build dist docs/_build htmlcov .coverage .coverage.* *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An editable install of one extra. A change in setup.cfg makes the stamp outdated, so the install runs again.
$(VENV)/.installed-%: $(SOURCES) | $(BIN)/python
	@echo "installing finx-streamer[$*] into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]" || { \
		echo "make: pip can't install finx-streamer[$*]; see its message above." >&2; \
		echo "make: can this machine reach PyPI? After a broken install, run 'make clean' and try again." >&2; \
		exit 1; }
	@touch $@

# The tests with NATS need nats-server: the one that is installed, or Debian's, fetched without root.
$(VENV)/.nats: | $(BIN)/python
	@if PATH="$$PATH:/usr/sbin" command -v nats-server >/dev/null; then \
		:; \
	elif command -v apt-get >/dev/null; then \
		echo "fetching nats-server into $(VENV)/nats …"; \
		.ci/fetch-nats $(VENV)/nats || exit 1; \
	else \
		echo "nats-server is not installed, so the tests that need it will be skipped."; \
	fi
	@touch $@

# Debian ships python3 without the venv module (package python3-venv). In that case, use virtualenv from PyPI, in its own
# folder. Nothing outside this directory changes.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: finx-streamer needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not. Try: make PYTHON=python3.12" >&2; \
		exit 1; }
	@echo "creating $(VENV) …"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
		rm -rf $(VENV); \
		echo "python3-venv is missing. Trying virtualenv …"; \
		$(PYTHON) -m pip install --quiet --disable-pip-version-check --upgrade --target .venv-bootstrap virtualenv && \
		PYTHONPATH=.venv-bootstrap $(PYTHON) -m virtualenv --quiet $(VENV); \
	} || { \
		rm -rf $(VENV); \
		echo "make: can't create a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv" >&2; \
		exit 1; }
