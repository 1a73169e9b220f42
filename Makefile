# make run, test, bench, lint, asan, wheel, clean. Each sets up .venv and builds what it needs, once.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin

SOURCES := $(shell find csrc tests/cpp -type f 2>/dev/null)
INSTALL := SEQKERN_BUILD_TESTS=1 $(BIN)/python -m pip install --quiet --no-build-isolation -e
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: build run test bench lint format asan cells-cuda wheel clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

# Options of the program go into ARGS: make run ARGS="--steps 50"
run: build
	$(BIN)/python -m examples.next_word $(ARGS)

test: build
	$(BIN)/python -m pytest tests $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

# The kernel tests on a build with AddressSanitizer. The build and the tests go into a folder of
# their own, so that neither touches the normal ones. Leaks are not looked for: Python has its own.
ASAN := build/asan
asan: $(VENV)/.built
	rm -rf $(ASAN) && mkdir -p $(ASAN)
	SEQKERN_SANITIZE=address $(BIN)/python setup.py -q build --build-lib $(ASAN)
	cp -r tests pyproject.toml $(ASAN)/
	cd $(ASAN) && LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. $(CURDIR)/$(BIN)/python -m pytest -x \
	  tests/test_kernels.py $(ARGS)

# The gate headers on plain floats, as CUDA kernels include them.
cells-cuda:
	nvcc -std=c++20 -Icsrc -c tests/cuda/cells.cu -o /dev/null

wheel: $(VENV)/.built
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info seqkern/*.so seqkern/_build_info.py
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first, and pinned: the extension is built against it.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "seqkern needs Python 3.10 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up $(VENV) with PyTorch $(TORCH)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	touch $@

$(VENV)/.built: $(VENV)/.torch $(SOURCES) CMakeLists.txt setup.py pyproject.toml
	@echo "Building seqkern (a minute or two)"
	$(BIN)/python -m pip install --quiet "setuptools>=77" cmake ninja
	$(INSTALL) '.[dev,examples]'
	touch $@

$(VENV)/.bench: $(VENV)/.built
	$(INSTALL) '.[bench]'
	touch $@
