# Everything goes through `setup`, which makes .venv once (again when pyproject.toml or constraints.txt change).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup browser demo test lint bench-gpu clean

setup: $(STAMP)

# torch goes in first, by its exact pin: a range may resolve to a build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --prefer-binary -c constraints.txt -e '.[micro,service,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/talker-rl run --config configs/demo.yaml --run-dir runs/demo

# The pages' tests need Chromium; where it cannot be installed they are skipped, with the reason.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no Chromium: the browser tests will be skipped (apt-get install chromium)" >&2

test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy

# The speed table at the real 7B geometry on a CUDA GPU, with random weights. PYTHON is one that has torch with CUDA,
# transformers, peft and accelerate; TRL is not needed. About five minutes on an H200-class card (docs/PERFORMANCE.md).
# BENCH="--device cpu --geometry tiny --quick" takes every step of it on any machine.
BENCH ?= --device cuda --geometry real --repeats 2
bench-gpu:
	PYTHONPATH=. $(PYTHON) -m benchmarks all $(BENCH) --json runs/bench-gpu.json

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
