# `make quickstart` and `make test` need nothing but Python 3.11 or newer, pip and make. The first installs what training
# and predicting need, the second the extras and what the tests need as well.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow test-all quality style benchmark site clean

# One thread: the data loader's worker has the second core, and two threads that share a core wait for one another.
quickstart: $(VENV)/base
	$(BIN)/accelerate launch --quiet --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process 1 examples/cotrain.py
	$(BIN)/python examples/quickstart_report.py

# Processes for the 2 cores of the smallest machine it is meant for, of one thread each. Files are in the order of
# tests/conftest.py. Tests start many interpreters, each of which would else compile the package again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder --numprocesses

# The specification. One process more than cores, as some tests wait for others.
test: $(VENV)/installed
	$(PYTEST) 3 -m "not slow"

# What takes long for a reason: killed runs, launchers, whole matrices. `make test` has something faster of each. Most
# wait for others or for a limit of time.
test-slow: $(VENV)/installed
	$(PYTEST) 4 -m slow

test-all: $(VENV)/installed
	$(PYTEST) 2

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mlinter --no-progress modeling_cover

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: $(VENV)/installed
	$(BIN)/python examples/benchmark.py

# The pages in build/site, with the API from the docstrings. A link that leads nowhere is a warning, and so an error.
site: $(VENV)/installed
	$(BIN)/python -m sphinx --fresh-env --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site

$(VENV)/base: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed: $(VENV)/base
	$(BIN)/python -m pip install --constraint constraints.txt --editable .[docs,quality,test]
	touch $@

clean:
	rm -rf $(VENV) build/doctrees build/site data/quickstart outputs/quickstart
