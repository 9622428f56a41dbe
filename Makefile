# The commands of this repository. `make` alone lists them.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,demo,build,openvino,onnxruntime,plots,legacy

.DEFAULT_GOAL := help
.PHONY: help demo test check clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## build from the shipped digits and stream images through it; options through ARGS="..."
	@$(BIN)/opa-trt demo $(ARGS)

# Torch's threads must not spin while they wait: the processes that run the tests share the cores.
test: $(STAMP) ## run the tests on all cores with coverage, without the slow and the GPU ones
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --dist loadgroup \
		--cov --cov-report=term -m "not slow and not gpu"

check: $(STAMP) ## lint, formatting, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean: ## remove build products and caches; keeps .venv and bundles
	@rm -rf build dist *.egg-info .coverage .coverage.* coverage.xml
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The stamp says that .venv holds what pyproject.toml and constraints.txt ask for. A .venv that stands already is
# filled up; one without a working pip, such as a creation that was interrupted leaves behind, is made again in place.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing opa-trt and its tools into $(VENV); this takes a minute or two."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
