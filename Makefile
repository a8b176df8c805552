# make demo   a small private model: trained, exported, loaded and used
# make test   lint, types, doctests and all tests; the same as CI runs
# make test-faults  runs, files, flags and input broken in hundreds of ways: long
# make gpu    CUDA and cuDNN into .venv; compiles kernels for the GPU, once
# make docs   the API reference, as HTML in docs/api
# make format the formatter, on everything
# make clean  removes .venv, caches, docs/api and runs/
#
# PYTHON=... names the Python that .venv is made with.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := requirements.txt requirements-dev.txt requirements-backbone.txt requirements-cluster.txt
# TensorFlow Federated runs on Python 3.9 to 3.11 alone.
SUITS := import ensurepip, sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))

.PHONY: demo test test-faults lint gpu docs format clean

demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/python -m experiments.train --flagfile=experiments/presets/demo.flags --output_dir=runs/demo
	$(BIN)/python -m experiments.sample_images --dataset=synthetic --output_dir=runs/demo/test_images
	$(BIN)/python -m experiments.classify --saved_model=runs/demo/saved_model --labels_from_folders runs/demo/test_images/*/*.png

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

# Each prints how many faults were tried, survived and lost; short forms of
# them are among the tests.
FAULTS := $(sort $(basename $(notdir $(wildcard tests/faults/*_faults.py)))) long_run

test-faults: $(STAMP)
	@failed=; for name in $(FAULTS); do \
	  $(BIN)/python -m tests.faults.$$name || failed="$$failed $$name"; done; \
	if [ -n "$$failed" ]; then echo "error: lost:$$failed" >&2; exit 1; fi

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

gpu: $(VENV)/.gpu
	$(BIN)/python -m experiments.warm_gpu

# TensorFlow finds the libraries: they lie beside it.
$(VENV)/.gpu: requirements-gpu.txt $(STAMP)
	@echo 'Installing CUDA 11.8 and cuDNN 8: takes some minutes and 4 GB, once.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-gpu.txt
	touch $@

docs: $(STAMP)
	rm -rf docs/api
	PDOC_ALLOW_EXEC=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m pdoc --docformat google --output-directory docs/api tff_medical

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info docs/api runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A PYTHON that an existing environment would ignore is an error.
ifneq ($(PYTHON),)
.PHONY: same-python
same-python:
	@[ ! -e $(STAMP) ] || { version='import sys; print(*sys.version_info[:2], sep=".")'; \
	  has=$$($(BIN)/python -c "$$version"); asked=$$($(PYTHON) -c "$$version"); \
	  [ "$$has" = "$$asked" ] || { \
	    echo "error: $(VENV) has Python $$has, PYTHON=$(PYTHON) is $${asked:-no Python}; run make clean first" >&2; \
	    exit 2; }; }
$(STAMP): | same-python
endif

$(STAMP): $(LOCKS)
	@python=; for p in $(or $(PYTHON),python3.11 python3.10 python3.9 python3 python); do \
	  if $$p -c '$(SUITS)' 2>/dev/null; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  p=$(or $(PYTHON),python3); \
	  printf '%s\n' \
	    "error: Python 3.9, 3.10 or 3.11 with venv is needed (TensorFlow Federated runs on no other); $$p is $$($$p --version 2>&1 || echo none)" \
	    '  anywhere:     pipx install uv; uv python install 3.11; make PYTHON="$$(uv python find 3.11)"' \
	    '  with pyenv:   pyenv install 3.11; make PYTHON="$$(pyenv prefix 3.11)/bin/python"' \
	    '  on Debian 12: apt-get install python3.11-venv; later Debian has no such package' \
	    '  on Ubuntu:    add-apt-repository ppa:deadsnakes/ppa; apt-get install python3.11-venv' >&2; \
	  exit 2; fi; \
	echo "Setting up $(VENV) with $$($$python --version): takes some minutes and 3 GB, once."; \
	rm -rf $(VENV); $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python $(LOCKS:%=-r %)
	touch $(STAMP)
