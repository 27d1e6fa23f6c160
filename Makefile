# make demo: the quickstart, from raw text to the report. make test: all tests. Both set up .venv.
ROOT ?= runs/quickstart
PYTHON ?= python3
RUN = .venv/bin/python -m instructretro_jax
TEST = JAX_NUM_CPU_DEVICES=8 .venv/bin/python -m pytest

.PHONY: demo test test-slow lint lock

demo: .venv/installed
	$(RUN) run --gin_file=experiments/quickstart/run.gin --root=$(ROOT)

test: .venv/installed
	$(TEST) -n 2 -m "not slow"

test-slow: .venv/installed
	$(TEST) -m slow

lint: .venv/installed
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch .venv/installed

# writes the lock anew; needs uv
lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' -o requirements.txt requirements.in
