# Everything runs in .venv, which is made on first use and remade only when pyproject.toml or constraints.txt change.
#
#   PYTHON     the interpreter that makes .venv (default: the first of python3, python3.14, .13, .12, .11 that is 3.11 - 3.14)
#   PIP_ARGS   extra arguments for pip, e.g. a build of PyTorch without CUDA:
#              make venv PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#   ARGS       extra arguments for pytest or the script, e.g. make test ARGS="tests/unit/checkpoints -x"

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := torch==2.13.0
EXTRAS := perception,data,dev,eval,train
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
NEEDS_EGL := import sys, ctypes.util; sys.exit(sys.platform == 'linux' and sys.version_info >= (3, 13) and not (ctypes.util.find_library('EGL') and ctypes.util.find_library('GLESv2')))
HEADLESS := opencv-contrib-python-headless
PYTHON ?=
PIP_ARGS ?=
WORKERS ?= 2
ROUNDS ?= 20
# Whatever pip says when it fails, the last line is one sentence.
pip = echo 'pip install $(1)'; $(BIN)/python -m pip --log $(VENV)/pip.log install $(1) || \
  PYTHONPATH=. $(BIN)/python -m xdyna.core.install $(VENV)/pip.log
ENDS ?= tests/unit/data tests/unit/evaluation tests/process/test_loader_ends.py
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv constraints demo preprocess tiny gpu-tiny gpu-session tiny-report tiny-card sensitivity eval-parity test test-fast test-long test-slow test-browser test-mutation test-properties test-parity docs docs-serve docs-test soak soak-ends hostile lint format bench clean

help: ## show the targets
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'
	@sed -n 's/^#   /  /p' $(MAKEFILE_LIST)

venv: $(STAMP) ## make .venv and install the package, perception and the developer tools

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	if ! $(BIN)/python -c "$(SUPPORTED)" 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  python=""; \
	  for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$candidate" -c "$(SUPPORTED)" 2>/dev/null; then python="$$candidate"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    found="$$($(if $(PYTHON),"$(PYTHON)",python3) --version 2>&1 | head -n 1 || true)"; \
	    echo "error: xdyna needs Python 3.11, 3.12, 3.13 or 3.14; '$(if $(PYTHON),$(PYTHON),python3)' is: $${found:-not found}." >&2; \
	    echo "       Install one of them and name it: make $(or $(MAKECMDGOALS),venv) PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  if ! "$$python" -c "import ensurepip, venv" 2>/dev/null; then \
	    echo "error: '$$python' cannot make virtual environments: its modules venv and ensurepip are missing." >&2; \
	    echo "       On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$python" --version)"; \
	  "$$python" -c "$(NEEDS_EGL)" || { \
	    echo "note: on Python 3.13 and above MediaPipe needs libEGL.so.1 and libGLESv2.so.2 to find people in videos; they are missing."; \
	    echo "      On Debian and Ubuntu: apt install libegl1 libgles2. The demo works without, the tests of the detector are skipped."; }; \
	  rm -rf $(VENV); "$$python" -m venv $(VENV); \
	fi
# PyTorch first and alone: the build that is asked for by PIP_ARGS is then in place before any other package asks for torch.
	@rm -f $(VENV)/pip.log
	@$(call pip,$(PIP_ARGS) "$(TORCH)" -c constraints.txt)
	@$(call pip,$(PIP_ARGS) -e ".[$(EXTRAS)]" -c constraints.txt)
# mediapipe and insightface bring builds of OpenCV that need a desktop's libraries; all builds share one folder, so the
# build without them is put back in their place.
	@$(BIN)/python -m pip uninstall -q -y opencv-python opencv-contrib-python $(HEADLESS)
	@$(call pip,$(PIP_ARGS) -q --no-deps $(HEADLESS) -c constraints.txt)
	@touch $(STAMP)

constraints: ## make constraints.txt anew: the newest versions that go together for every supported Python and all extras
	$(if $(PYTHON),$(PYTHON),python3) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install -q uv
	echo "$(TORCH)" | .venv-constraints/bin/uv pip compile --universal --python-version 3.11 --all-extras --no-header --no-annotate \
	  --no-emit-package xdyna --constraint - pyproject.toml -o .venv-constraints/list -q --upgrade
	sed -n '/^[^#]/q;p' constraints.txt | cat - .venv-constraints/list > .venv-constraints/new
	mv .venv-constraints/new constraints.txt; rm -rf .venv-constraints

demo: $(STAMP) ## animate the sample puppet; writes an mp4 and a contact sheet and prints where
	$(BIN)/python scripts/demo.py $(ARGS)

preprocess: $(STAMP) ## make a training set of videos, e.g. ARGS="footage/ --out datasets/mine"; continues what it began
	$(BIN)/python scripts/preprocess.py $(ARGS)

# Each stage is one run that resumes exactly: an interrupted `make tiny` continues where it was. MINUTES limits a slice.
tiny: $(STAMP) ## train xdyna-tiny from nothing, all stages (hours on a CPU); continues what it began
	@stages="$$($(BIN)/python scripts/train.py --stages tiny)" || exit 1; \
	for stage in $$stages; do \
	  $(BIN)/python scripts/train.py experiment=$$stage --resume $(if $(MINUTES),--max-minutes $(MINUTES)) $(ARGS) || exit 1; \
	  [ -d runs/$$stage/final ] || { echo "stage $$stage goes on at the next call"; exit 0; }; \
	done; \
	echo "done; ship it with: python scripts/convert.py --pipeline runs/tiny/face/final --out pretrained/xdyna-tiny"

# The same with the batches of one large GPU.
gpu-tiny: ## train xdyna-tiny on a GPU, with the python that is active (it must have CUDA); continues what it began
	@stages="$$(python scripts/train.py --stages tiny/gpu)" || exit 1; \
	for stage in $$stages; do \
	  python scripts/train.py experiment=$$stage --resume $(if $(MINUTES),--max-minutes $(MINUTES)) $(ARGS) || exit 1; \
	  [ -d runs/tiny-gpu/$${stage##*/}/final ] || { echo "stage $$stage goes on at the next call"; exit 0; }; \
	done

gpu-session: ## ten minutes with any GPU, the python that is active: tests, window-steps, memory, training; see scripts/gpu_session.sh
	scripts/gpu_session.sh $(ARGS)

tiny-report: $(STAMP) ## measure xdyna-tiny on held-out clips; writes tables and contact sheets
	$(BIN)/python scripts/puppets.py report $(ARGS)

eval-parity: ## compare metrics' networks with their libraries, in .venv-parity (CUDA build of PyTorch, 6 GB)
	$(if $(PYTHON),$(PYTHON),python3) -m venv .venv-parity
	.venv-parity/bin/pip install -q torch==2.14.1 torchvision==0.29.1
	.venv-parity/bin/pip install -q pytorch-fid lpips einops opencv-python-headless requests
	.venv-parity/bin/pip install -q --no-deps cd-fvd facenet-pytorch
	PYTHONPATH=. .venv-parity/bin/python -m xdyna eval parity

tiny-card: $(STAMP) ## the same into the card of xdyna-tiny and docs/eval_tiny.md
	$(BIN)/python scripts/puppets.py report --card pretrained/xdyna-tiny/README.md --doc docs/eval_tiny.md $(ARGS)

sensitivity: $(STAMP) ## damage puppet clips and see which metrics react; writes docs/metrics
	$(BIN)/python scripts/puppets.py sensitivity $(ARGS)

test: $(STAMP) ## run the tests of units and of programs, in two processes (WORKERS=N: in others)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-fast: $(STAMP) ## run the unit tests alone
	$(BIN)/python -m pytest tests/unit -n $(WORKERS) $(ARGS)

test-long: $(STAMP) ## run the long tests: more cases of the same, and whole programs
	$(BIN)/python -m pytest -m "long and not slow and not gpu" -n $(WORKERS) $(ARGS)

test-slow: $(STAMP) ## run the slow tests
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-properties: $(STAMP) ## look for counterexamples to what always holds, 1,000 tries each
	HYPOTHESIS_PROFILE=search $(BIN)/python -m pytest tests/unit -k always $(ARGS)

test-browser: $(STAMP) ## show the page to a headless Chromium (Debian: apt-get install chromium chromium-driver)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]" selenium==4.51.0
	$(BIN)/python -m pytest -m slow tests/process/test_page_browser.py tests/process/test_page_api.py $(ARGS)

soak: $(STAMP) ## kill every program 10 times at random moments, and compare what they end with
	$(BIN)/python -m tests.process.soak $(ARGS)

hostile: $(STAMP) ## give the programs more than 1,100 hostile inputs; ARGS="--kinds image --messages": some of them
	$(BIN)/python -m tests.hostile.run $(ARGS)

# A round that does not end within ten minutes fails.
soak-ends: $(STAMP) ## run the tests of data and evaluation ROUNDS times (20): all must end
	@for round in $$(seq $(ROUNDS)); do \
	  timeout 600 $(BIN)/python -m pytest -q -p no:cacheprovider $(ENDS) $(ARGS) || { echo "round $$round: $$?"; exit 1; }; \
	done; echo "$(ROUNDS) rounds: all ended"

test-mutation: $(STAMP) ## put small mistakes into a copy of evaluation and training, one by one: a test must fail for each
	$(BIN)/python -m pytest -m slow -s tests/process/test_mutations.py $(ARGS)

test-parity: $(STAMP) ## compare with the golden tensors in XDYNA_PARITY_DIR (default ../shared/parity)
	$(BIN)/python -m pytest tests/parity -m "not gpu" $(ARGS)

docs-test: $(STAMP) ## run every command of the documents at tiny size; ARGS="docs/live.md": of one page
	$(BIN)/python -m tests.docs.run $(ARGS)

docs: $(VENV)/.installed-docs ## build the site of docs/ into build/site
	$(BIN)/python -m mkdocs build --strict $(ARGS)

docs-serve: $(VENV)/.installed-docs ## show the site at http://127.0.0.1:8000 while writing
	$(BIN)/python -m mkdocs serve $(ARGS)

$(VENV)/.installed-docs: $(STAMP)
	$(BIN)/python -m pip install $(PIP_ARGS) -q -e ".[docs]" -c constraints.txt
	@touch $@

lint: $(STAMP) ## ruff (lint and format) and mypy
	@status=0; \
	for check in "ruff check ." "ruff format --check ." "mypy xdyna"; do \
	  echo "$$check"; $(BIN)/$$check || status=1; \
	done; exit $$status

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure time and memory
	$(BIN)/python scripts/bench.py $(ARGS)

clean: ## remove caches and build products; never .venv, weights or anything a run wrote
	rm -rf .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info
	find xdyna scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
