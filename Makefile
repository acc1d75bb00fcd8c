# make setup  .venv with everything          make demo  set up, then build and certify the default model
# make test   set up, then run every check   make bench print every figure of bench/ (long)
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml .constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "cactus-edge needs Python 3.11 or newer; got $$($(PYTHON) --version). Try: make setup PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  echo "python3 -m venv failed: installing it with apt (Debian and Ubuntu ship it as a package of its own)"; \
	  apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/cactus-edge build --target mcu

test: setup lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
