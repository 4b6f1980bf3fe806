# make test         set up everything that README's test command needs, then run the tests
# make check        ruff (lint and format) and mypy
# make test-oldest  the tests on the oldest supported torch and timm, in an environment of its own
# make bench        the benchmarks; results go to benchmarks/results (on a GPU: python benchmarks/gpu.py)
# make docs         the documentation as a site: site/index.html, which opens from disk
# make gallery      the pictures of the gallery whose scripts have changed (most need the weights in TOKENLENS_TEST_DATA)
# make env          the environment alone

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/ready
CONSTRAINTS ?=
TESTS ?=
JOBS ?= 2

.PHONY: env chromium check test test-oldest bench docs gallery clean

env: $(READY)

# Made again when pyproject.toml changes; pip installs only what is missing.
$(READY): pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]' $(CONSTRAINTS)
	touch $@

# For the tests that open a report in a browser; without Chromium, and without root to install it, they are skipped.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	     && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends chromium; } \
	|| echo "no Chromium, and no right to install it: the browser tests will be skipped"

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# JOBS processes of one thread each. A file's tests stay in one process, so that they share what they set up.
test: env chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS="torch==2.11.* timm==1.0.31"

bench: env
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/analyze.py all
	$(BIN)/python benchmarks/train.py all

# Pictures are committed, because most need weights; nothing is drawn, and no model run, where they are up to date.
gallery: env
	$(BIN)/python docs/making/draw_gallery.py

# The theme advertises its successor on every build otherwise.
docs: gallery
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache
