# make run, examples, test, integration, bench, lint, asan, wheel, clean. Each sets up what it needs, once.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin
INTEGRATION := .venv-integration

PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: build run examples test integration bench lint format asan cells-cuda wheel clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

# Options of the program go into ARGS: make run ARGS="--steps 50"
run: build
	$(BIN)/python -m examples.next_word $(ARGS)

# Every program in examples/, with its check and its figure: make examples ARGS="--budget small"
examples: $(VENV)/.examples
	$(BIN)/python -m examples $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest tests $(ARGS)

# Third-party programs on seqkern's modules, with the wheel in an environment of their own; run from
# their folder, so that they see the installed package.
integration: $(INTEGRATION)/.seqkern
	cd tests/integration && $(CURDIR)/$(INTEGRATION)/bin/python -m pytest . $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The kernel tests on a build with AddressSanitizer, in a folder of their own, so that nothing else
# is touched. Leaks are not looked for: Python has its own. libstdc++ is loaded early too, else the
# sanitizer finds no function that throws. --capture=sys lets its report through.
ASAN := build/asan
CXX_FILE = $$($(CXX) -print-file-name=$(1))
asan: $(VENV)/.dev
	rm -rf $(ASAN) && mkdir -p $(ASAN)
	SEQKERN_SANITIZE=address $(BIN)/python setup.py -q build --build-lib $(ASAN)
	cp -r tests pyproject.toml $(ASAN)/
	cd $(ASAN) && LD_PRELOAD="$(call CXX_FILE,libasan.so) $(call CXX_FILE,libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. $(CURDIR)/$(BIN)/python -m pytest -x --capture=sys \
	  tests/test_kernels.py $(ARGS)

# The gate headers on plain floats, as CUDA kernels include them.
cells-cuda:
	nvcc -std=c++20 -Icsrc -c tests/cuda/cells.cu -o /dev/null

wheel: $(VENV)/.built
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(INTEGRATION) build dist *.egg-info seqkern/*.so seqkern/_build_info.py
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first, and pinned: the extension is built against it. Each stamp below is younger than all
# that it was made from; --quiet --quiet leaves errors, with the compiler's output.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "seqkern needs Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) with PyTorch $(TORCH)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch==$(TORCH)
	@touch $@

$(VENV)/.built: $(VENV)/.torch $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
	@echo "Building seqkern"
	@$(PIP) "setuptools>=77" cmake ninja
	@$(PIP) --no-build-isolation -e '.[run]'
	@touch $@

# The tools of developers, and the C++ tests.
$(VENV)/.dev: $(VENV)/.built $(shell find tests/cpp -type f 2>/dev/null)
	@echo "Building the C++ tests"
	@SEQKERN_BUILD_TESTS=1 $(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/.examples: $(VENV)/.built
	@echo "Fetching the examples' data"
	@$(PIP) --no-build-isolation -e '.[examples]'
	@touch $@

$(VENV)/.bench: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@

# What pulls in packages that have no build for this torch comes without its dependencies.
NEEDED := tests/integration/requirements
INTEGRATION_PIP := $(INTEGRATION)/bin/python -m pip install --quiet --quiet --disable-pip-version-check
$(INTEGRATION)/.packages: $(NEEDED).txt $(NEEDED)-no-deps.txt
	@echo "Setting up $(INTEGRATION)"
	@$(PYTHON) -m venv --clear $(INTEGRATION)
	@$(INTEGRATION_PIP) torch==$(TORCH)
	@$(INTEGRATION_PIP) torch==$(TORCH) -r $(NEEDED).txt
	@$(INTEGRATION_PIP) --no-deps -r $(NEEDED)-no-deps.txt
	@touch $@

$(INTEGRATION)/.seqkern: $(INTEGRATION)/.packages $(VENV)/.built $(wildcard seqkern/*.py)
	@rm -rf build/integration
	@$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps -w build/integration .
	@$(INTEGRATION_PIP) --no-deps --force-reinstall build/integration/seqkern-*.whl
	@touch $@
