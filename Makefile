# make run, examples, docs, test, integration, bench, lint, asan, cuda-check, cuda-build, cuda-host,
# cuda-mutations, cuda-sanitize, wheel, clean. Each sets up what it needs, once.

PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin
INTEGRATION := .venv-integration
CUDA_TORCH ?= 2.14.1
CUDA_VENV := .venv-cuda
CUDA_TOOLS := .venv-cuda-tools

PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
CPP_FILES = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: build run examples docs test integration bench lint format asan cells-cuda cuda-check cuda-build \
  cuda-host cuda-mutations cuda-sanitize cuda-sanitize-needs wheel clean
.DELETE_ON_ERROR:

build: $(VENV)/.built

# Options of the program go into ARGS: make run ARGS="--steps 50"
run: build
	$(BIN)/python -m examples.next_word $(ARGS)

# Every program in examples/, with its check and its figure: make examples ARGS="--budget small"
examples: $(VENV)/.examples
	$(BIN)/python -m examples $(ARGS)

TESTS := tests
# build/docs/index.html; a warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(TESTS) $(ARGS)

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
	  tests/test_kernels.py tests/test_strided.py tests/test_step.py::test_sizes tests/test_stream.py::test_equals_the_sequence \
	  $(ARGS)

# The gate headers on plain floats, as CUDA kernels include them, and the barrier over the grid, of either kind.
cells-cuda:
	nvcc -std=c++20 -Icsrc -c tests/cuda/cells.cu -o /dev/null
	nvcc -std=c++20 -Icsrc -c tests/cuda/barrier.cu -o /dev/null
	nvcc -std=c++20 -Icsrc -DSEQKERN_COOPERATIVE_GROUPS -c tests/cuda/barrier.cu -o /dev/null

# Every CUDA kernel for every architecture: needs nvcc and no GPU. ARGS=--write renews docs/cuda.md.
cuda-check: $(CUDA_TOOLS)/.installed
	$(PYTHON) tools/cuda_check.py $(ARGS) \
	  --nvdisasm $(CURDIR)/$$(find $(CUDA_TOOLS) -path '*/bin/nvdisasm' -type f | head -1)

# The whole extension against a torch with CUDA, in an environment of its own; needs nvcc and no GPU. Then
# its tests, but for those of the repository's other folders and those that need more packages.
CUDA_OUT := build/cuda
CUDA_TESTS = $(filter-out $(foreach name,benchmarks build compatibility cpp distributed docs examples \
  layers more_examples onnx,tests/test_$(name).py),$(wildcard tests/test_*.py))
cuda-build: $(CUDA_VENV)/.torch
	@command -v nvcc >/dev/null || { echo "cuda-build: nvcc is not on the PATH"; exit 1; }
	SEQKERN_CUDA=on $(CUDA_VENV)/bin/python setup.py -q build --build-lib $(CUDA_OUT)
	rm -rf $(CUDA_OUT)/tests && cp -r tests pyproject.toml $(CUDA_OUT)/
	cd $(CUDA_OUT) && PYTHONPATH=. $(CURDIR)/$(CUDA_VENV)/bin/python -m pytest -q $(CUDA_TESTS) $(ARGS)

# The CUDA kernels executed on the CPU by tests/cuda_host, no GPU and no nvcc: the tests of kernels
# and of single steps, each tier under each schedule, and small layers under AddressSanitizer and ThreadSanitizer. Each build
# is a folder to run from, as that finds its seqkern first.
CUDA_HOST := build/cuda-host
CUDA_HOST_RUN = cd $(CUDA_HOST)/$(1) && OMP_NUM_THREADS=1 $(2) $(CURDIR)/$(BIN)/python -m pytest -q
CUDA_HOST_ASAN = LD_PRELOAD="$(call CXX_FILE,libasan.so) $(call CXX_FILE,libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0
# Its shadow memory has a fixed place, which setarch -R keeps free; what torch does is not looked at.
CUDA_HOST_TSAN = LD_PRELOAD=$(call CXX_FILE,libtsan.so) \
  TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1" setarch -R
CUDA_HOST_TESTS := $(CURDIR)/tests/cuda_host
CUDA_HOST_KERNELS := $(addprefix $(CURDIR)/tests/test_,kernels.py step.py stream.py device.py)
cuda-host: $(VENV)/.dev
	SEQKERN_CUDA=host SEQKERN_BUILD_TESTS=1 $(BIN)/python setup.py -q build --build-lib $(CUDA_HOST)/none
	set -e; for sanitizer in address thread; do \
	  rm -rf $(CUDA_HOST)/$$sanitizer; cp -r $(CUDA_HOST)/none $(CUDA_HOST)/$$sanitizer; \
	  cp build/cmake-*-cuda-host/$$sanitizer/_C.* $(CUDA_HOST)/$$sanitizer/seqkern/; done
	$(call CUDA_HOST_RUN,none) $(CUDA_HOST_TESTS) $(CUDA_HOST_KERNELS) \
	  -k "not avx" $(ARGS)
	$(call CUDA_HOST_RUN,address,$(CUDA_HOST_ASAN)) --capture=sys $(CUDA_HOST_TESTS)/test_cuda_host.py \
	  -k "small_layers or ragged or nan"
	$(call CUDA_HOST_RUN,thread,$(CUDA_HOST_TSAN)) --capture=sys $(CUDA_HOST_TESTS)/test_cuda_host.py -k small_layers

# Deliberate bugs, one at a time, each of which those tests must find. ARGS=--write renews docs/cuda.md.
cuda-mutations: cuda-host
	$(BIN)/python tests/cuda_host/mutate.py $(ARGS)

# Small layers on a GPU under each of compute-sanitizer's tools; needs nvcc too. initcheck must see every
# kernel that writes, the other tools look at ours alone. Without its cache torch's allocator asks for
# each tensor, so that memcheck knows its end; torch asks CUDA for things that it need not have.
CUDA_SANITIZE = PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(1) --error-exitcode 1 \
  --report-api-errors no $(2) $(BIN)/python -m pytest -q -x --capture=sys tests/test_device.py \
  -k "(small_layers or small_tiers) and not cpu" $(ARGS)
cuda-sanitize-needs:
	@command -v compute-sanitizer >/dev/null || { \
	  echo "cuda-sanitize: compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"; exit 1; }
	@nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "cuda-sanitize: nvidia-smi finds no GPU"; exit 1; }
cuda-sanitize: cuda-sanitize-needs $(VENV)/.dev
	@$(BIN)/python -c 'import torch; from seqkern.ops import CUDA_KERNELS as built; \
	  lacks = not torch.cuda.is_available() and "PyTorch sees no GPU" or not built and "the build has no CUDA kernels"; \
	  raise SystemExit(lacks and f"cuda-sanitize: {lacks}" or 0)'
	$(call CUDA_SANITIZE,memcheck,--kernel-name kns=seqkern_)
	$(call CUDA_SANITIZE,racecheck,--kernel-name kns=seqkern_)
	$(call CUDA_SANITIZE,synccheck,--kernel-name kns=seqkern_)
	$(call CUDA_SANITIZE,initcheck)

wheel: $(VENV)/.built
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) $(INTEGRATION) $(CUDA_VENV) $(CUDA_TOOLS) build dist *.egg-info seqkern/*.so seqkern/_build_info.py
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
	@SEQKERN_BUILD_TESTS=1 $(PIP) --no-build-isolation -e '.[dev,examples]'
	@touch $@

$(VENV)/.examples: $(VENV)/.built
	@echo "Fetching the examples' data"
	@$(PIP) --no-build-isolation -e '.[examples]'
	@touch $@

$(VENV)/.docs: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[docs]'
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

$(CUDA_TOOLS)/.installed:
	@$(PYTHON) -m venv --clear $(CUDA_TOOLS)
	@$(CUDA_TOOLS)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
	  'nvidia-cuda-nvdisasm>=13,<14'
	@touch $@

# About 6 GB, and as much again while it is unpacked.
CUDA_FREE_GB := 12
$(CUDA_VENV)/.torch:
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1048576) }'); \
	  [ $$free -ge $(CUDA_FREE_GB) ] || { \
	  echo "cuda-build needs $(CUDA_FREE_GB) GB of disk for a PyTorch with CUDA, $$free are free"; exit 1; }
	@echo "Setting up $(CUDA_VENV) with PyTorch $(CUDA_TORCH) and its CUDA libraries: about 6 GB"
	@$(PYTHON) -m venv --clear $(CUDA_VENV)
	@$(CUDA_VENV)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
	  torch==$(CUDA_TORCH) "setuptools>=77" cmake ninja numpy pytest hypothesis
	@touch $@
