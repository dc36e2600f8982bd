# Every target creates what it needs: on a machine with Python and make, `make test` may come first.
# Another interpreter in another folder: make test VENV=.venv313 PYTHON=python3.13

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-quick test-long lint notebooks lock clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: $(INSTALLED) ## fit the seeds model by Monte Carlo EM, next to the reference answer
	$(BIN)/ppl-em fit seeds --e-step nuts --reference --out seeds.nc --plot seeds.png

# pytest leaves with status 5 where no test is marked slow: that is no failure.
test: test-quick ## run all tests, the quick ones first
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "slow and not long" tests || [ $$? -eq 5 ]

test-quick: $(INSTALLED) ## run the quick tests only
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not long" tests

test-long: $(INSTALLED) ## run the tests that `make test` leaves out for time
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m long tests

lint: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ppl_em

notebooks: $(INSTALLED) ## run the notebooks and store their output in place
	$(BIN)/python -m nbconvert --to notebook --execute --inplace notebooks/*.ipynb

lock: ## write requirements.lock anew from pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --extra dev \
		--no-emit-index-url --no-header pyproject.toml -o requirements.lock
	rm -rf .venv-lock

clean: ## remove caches, builds and the demo's output, but keep the environment
	rm -rf build dist .hypothesis .jax_cache .mypy_cache .pytest_cache .ruff_cache
	rm -f seeds.nc seeds.png
	find ppl_em models tests notebooks -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} + 2>/dev/null || true

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, but '$(PYTHON)' is not. Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing into $(VENV), once; this takes a few minutes.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q ppl_em models
	@touch $@
