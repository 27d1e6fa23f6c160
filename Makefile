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

# SLOW='--slow_third=HASH --slow_minutes=25': the third that a commit picks, as far as it fits
test-slow: .venv-slow/installed
	JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 .venv-slow/bin/python -m pytest -m slow -rs $(SLOW)

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/pyrefly check --summary=none

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(QUIET) --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/python -m pip install $(QUIET) --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch .venv/installed

# .venv with what only slow tests need: PyTorch and transformers as oracles, XManager, and the
# compiler of TPUs beside it; where that is installed, JAX looks for TPUs at every start
.venv-slow/installed: .venv/installed
	$(PYTHON) -m venv .venv-slow
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  $$(.venv-slow/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth
	.venv-slow/bin/python -m pip install $(QUIET) --disable-pip-version-check 'instructretro-jax[interop,tpu,xmanager,notebooks,lm_eval]'
	touch .venv-slow/installed

# writes the lock anew; needs uv
lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' -o requirements.txt requirements.in
