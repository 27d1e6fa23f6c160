# make demo: the quickstart, from raw text to the report. make test: all tests. Both set up .venv.
ROOT ?= runs/quickstart
PYTHON ?= python3
RUN = .venv/bin/python -m instructretro_jax
TEST = JAX_NUM_CPU_DEVICES=8 .venv/bin/python -m pytest

# twice: errors are shown, warnings of an index that lacks a package are not
QUIET = --quiet --quiet

.PHONY: demo test test-slow lint lock

# glibc keeps memory once it has it: else Linux clears that of each train step anew, 1/6 of its time
demo: export GLIBC_TUNABLES ?= glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
demo: .venv/installed
	$(RUN) run --gin_file=experiments/quickstart/run.gin --root=$(ROOT)

test: .venv/installed
	$(TEST) -n 2 -m "not slow"

test-slow: .venv/installed .venv-tpu/installed
	$(TEST) -m slow
	JAX_PLATFORMS=cpu .venv-tpu/bin/python -m pytest -m slow tests/precompile/test_tpu.py

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(QUIET) --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/python -m pip install $(QUIET) --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch .venv/installed

# .venv with the compiler of TPUs beside it: where that is installed, JAX looks for TPUs at every start
.venv-tpu/installed: .venv/installed
	$(PYTHON) -m venv .venv-tpu
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$(.venv-tpu/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	.venv-tpu/bin/python -m pip install $(QUIET) --disable-pip-version-check 'jax[tpu]'
	touch .venv-tpu/installed

# writes the lock anew; needs uv
lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' -o requirements.txt requirements.in
