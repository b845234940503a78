# make demo    the shipped network on real handwritten digits: table on the terminal, report in HTML
# make quick   every kind of test, on eight networks in one type: the inner loop, about a minute once all is built
# make test    builds everything and runs the tests that every change must pass
# make test-all   those that are too long for every change too, among them a build with CUDA; once a night
# make test-triton   the tests of the Triton kernels, in its interpreter or on a GPU; a few minutes more
# make test-interop   networks of torchvision, timm and pytorchcv; some minutes
# make bench   the benchmark against the runtimes a user would run instead; BENCH chooses runs of benchmarks/cpu.py
# make bench-compare   the same anew, and its ratios against this machine's committed results
# make lint    ruff, clang-format, mypy, lint-imports   make format   rewrites the code in the house style
# make resources   registers, shared memory and occupancy of the GPU kernels on every architecture; fails on spills
# make clean   removes the environment and everything built
#
# All of it happens in .venv, made here from $(PYTHON) and the pinned requirements/*.txt. Needs python3 (3.10 to 3.13)
# with venv and headers, a C++20 compiler and make. A second call finds its stamps and starts at once.

PYTHON ?= python3
VENV ?= .venv
BENCH ?= concat-bc-100 kernels

pip = $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
native := setup.py pyproject.toml $(shell find csrc -type f)
cpp := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
python := setup.py dsn_kernels python tests benchmarks

.NOTPARALLEL:
.PHONY: demo quick test test-all test-triton test-interop bench bench-compare lint format resources clean
.DELETE_ON_ERROR:

demo: $(VENV)/stamp-build
	$(VENV)/bin/dsn demo

pytest = $(VENV)/bin/python -m pytest -q -n 2 --dist worksteal --durations=25

quick: $(VENV)/stamp-build $(VENV)/stamp-runner
	$(pytest) -m quick

# Of the architecture built for, the tests' build alone: a user's assembler may know no better.
test test-all: export CHECK_SPILLS = 1
test: $(VENV)/stamp-build $(VENV)/stamp-runner
	$(pytest) -m "not slow"

test-all: $(VENV)/stamp-build $(VENV)/stamp-runner
	$(pytest)

test-triton: $(VENV)/stamp-build $(VENV)/stamp-triton
	$(pytest) tests/triton

test-interop: $(VENV)/stamp-build $(VENV)/stamp-interop
	$(pytest) tests/test_interop.py tests/models/test_gating.py tests/models/test_constructors.py

bench: $(VENV)/stamp-build $(VENV)/stamp-bench $(VENV)/stamp-test
	$(VENV)/bin/python benchmarks/cpu.py $(BENCH)

bench-compare: $(VENV)/stamp-build $(VENV)/stamp-bench $(VENV)/stamp-test
	$(VENV)/bin/python benchmarks/compare.py $(BENCH)

lint: $(VENV)/stamp-test
	$(VENV)/bin/ruff check $(wildcard $(python))
	$(VENV)/bin/ruff format --check $(wildcard $(python))
	$(VENV)/bin/clang-format --dry-run -Werror $(cpp)
	$(VENV)/bin/mypy
	PYTHONPATH=python $(VENV)/bin/lint-imports --no-cache

format: $(VENV)/stamp-test
	$(VENV)/bin/ruff check --fix $(wildcard $(python))
	$(VENV)/bin/ruff format $(wildcard $(python))
	$(VENV)/bin/clang-format -i $(cpp)

# Minutes of nvcc for each architecture.
resources: $(VENV)/stamp-build $(VENV)/stamp-test
	$(VENV)/bin/python benchmarks/check_resources.py --json benchmarks/results/gpu-kernel-resources.json

clean:
	rm -rf $(VENV) build dist *.egg-info dsn_kernels/_C.*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/stamp-run: requirements/run.txt | $(VENV)/bin/python
	$(pip) install -r requirements/run.txt
	@touch $@

$(VENV)/stamp-%: requirements/%.txt $(VENV)/stamp-run
	$(pip) install -r $<
	@touch $@

# The host runner, with the product's kernels and with those of tests. Exit status 3: it cannot be built on this machine;
# the tests that it plays in say why and are skipped.
$(VENV)/stamp-runner: $(native) $(shell find tests/simt/kernels -type f) $(VENV)/stamp-test
	$(VENV)/bin/python csrc/simt/build.py || test $$? = 3
	$(VENV)/bin/python csrc/simt/build.py --kernels tests/simt/kernels || test $$? = 3
	@touch $@

$(VENV)/stamp-build: $(native) $(VENV)/stamp-run
	$(pip) install --no-build-isolation --no-deps --editable .
	$(pip) check
	@touch $@
