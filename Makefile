# make demo   a small private model: trained, exported, loaded and used
# make test   lint, types, doctests and all tests; the same as CI runs
# make format the formatter, on everything
# make clean  removes .venv, caches and runs/

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format clean

demo: $(STAMP)
	rm -rf runs/demo
	$(BIN)/python -m experiments.train --flagfile=experiments/presets/demo.flags --output_dir=runs/demo
	$(BIN)/python -m experiments.sample_images --dataset=synthetic --output_dir=runs/demo/test_images
	$(BIN)/python -m experiments.classify --saved_model=runs/demo/saved_model runs/demo/test_images/*.png

test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist=loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# TensorFlow Federated runs on Python 3.9 to 3.11 alone.
$(STAMP): requirements.txt
	@python=; for p in python3.11 python3.10 python3.9 python3 python; do \
	  if $$p -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null; \
	  then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "error: Python 3.9, 3.10 or 3.11 is needed (TensorFlow Federated runs on no other)," \
	    "found only: $$(python3 --version 2>&1 || echo none); install one, e.g. apt-get install python3.11-venv" >&2; \
	  exit 2; fi; \
	echo "Setting up $(VENV) with $$($$python --version): takes some minutes and 3 GB, once."; \
	rm -rf $(VENV); $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements.txt
	touch $(STAMP)
