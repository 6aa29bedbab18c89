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

# What pip would say after minutes, and venv in a screenful: what was found, what is needed, the fix. Any Python reads it.
GOAL := $(or $(firstword $(MAKECMDGOALS)),setup)
define CHECK
import sys
found = "%s is Python %d.%d" % ((sys.executable,) + tuple(sys.version_info[:2]))
again = "make $(GOAL) PYTHON=python3.11"
made = getattr(sys, "base_prefix", sys.prefix) != sys.prefix
if sys.version_info < (3, 11):
    fix = "rm -r $(VENV), then " + again if made else again
    sys.exit("error: talker-rl needs Python 3.11 or newer, and " + found + "; fix: " + fix)
from importlib.util import find_spec
if made and not find_spec("pip"):
    sys.exit("error: the environment $(VENV) was left unfinished: it has no pip; fix: rm -r $(VENV), then make $(GOAL)")
if not made and not find_spec("ensurepip"):
    sys.exit("error: " + found + " without ensurepip, which makes no environment; fix: install its venv package "
             "(Debian, Ubuntu: apt install python%d.%d-venv), or " % sys.version_info[:2] + again)
endef
export CHECK

setup: $(STAMP)

# torch goes in first, by its exact pin: a range may resolve to a build with gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	@if test -x $(BIN)/python; then $(BIN)/python -c "$$CHECK"; \
	elif command -v "$(PYTHON)" >/dev/null; then $(PYTHON) -c "$$CHECK"; \
	else echo "error: talker-rl needs Python 3.11 or newer, and there is no $(PYTHON) here;" \
		"fix: make $(GOAL) PYTHON=python3.11" >&2; exit 1; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --prefer-binary -c constraints.txt -e '.[micro,service,dev]'
	@# As bytecode, on all cores: where PYTHONDONTWRITEBYTECODE is set (images of containers do), every process would
	@# else compile torch and all else anew, 10 s of a core and more. A few files are templates and do not compile.
	@$(BIN)/python -m compileall -qq -j 0 $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') 2>/dev/null || true
	touch $(STAMP)

demo: setup
	$(BIN)/talker-rl run --config configs/demo.yaml --run-dir runs/demo

# The pages' tests need Chromium; where it cannot be installed they are skipped, with the reason.
browser:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
		&& apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no Chromium: the browser tests will be skipped (apt-get install chromium)" >&2

test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

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
