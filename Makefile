# make test    everything that README's test command needs, from nothing, then the tests
# make check   ruff and mypy
# make bench   the benchmarks; results in benchmarks/results
# make docs    the pages as a site: site/index.html, which opens from disk
# make env     the environment alone

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/ready
TESTS ?=

.PHONY: env chromium check test bench docs clean

env: $(READY)

# Renewed when pyproject.toml changes; pip installs what is missing only.
$(READY): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# For the tests that open a report in a browser; without it and without root they are skipped, and say so.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } \
	|| echo "no Chromium, and no right to install it: the browser tests will be skipped"

check: env
	$(BIN)/ruff check .
	$(BIN)/mypy

test: env chromium
	$(BIN)/python -m pytest $(TESTS)

bench: env
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/analyze.py all
	$(BIN)/python benchmarks/train.py all

# The theme advertises its successor on every build otherwise.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
