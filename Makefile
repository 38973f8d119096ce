# make course   set up, then run every notebook        (MODE=quick|full|modal, ONLY=02)
# make test     set up, then run all tests             (LATEST=1: newest versions)
# make lab      set up, then open the notebooks in JupyterLab
# make bench    set up, then run the benchmarks
# make figure   redraw the README's figure from data/runs
# make site     set up, then write the course as web pages to site/
# make format   mend the layout of code and notebooks
# make lock     write requirements.lock anew from pyproject.toml
# make clean    remove environments, runs and the site

PYTHON ?= python3
MODE ?= quick
ONLY ?=
LATEST ?=
VENV := .venv$(if $(LATEST),-latest)
BIN := $(VENV)/bin
# Left out of the lock file: PyTorch's builds for a CPU need none of these, and its build
# for GPUs brings them along in the versions that it wants.
CUDA := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas \
	cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

.PHONY: course test lab bench figure site lock format clean help
.DEFAULT_GOAL := course

help:
	@sed -n 's/^# make /make /p' Makefile

course: $(VENV)/.ready
	$(BIN)/python -m utils.course run --mode $(MODE) $(if $(ONLY),--only $(ONLY))

test: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lab: $(VENV)/.ready
	$(BIN)/jupyter lab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

bench: $(VENV)/.ready
	$(BIN)/python tests/bench/bench_sandbox.py
	$(BIN)/python tests/bench/bench_training.py
	$(BIN)/python tests/bench/bench_rl.py

figure: $(VENV)/.ready
	$(BIN)/python -m utils.course front

site: $(VENV)/.ready
	$(BIN)/python -m utils.site

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 \
		$(addprefix --no-emit-package ,$(CUDA)) \
		--custom-compile-command "make lock" pyproject.toml -o requirements.lock

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "The course needs Python 3.11 or newer, and %s is %d.%d. Say which to use: make PYTHON=python3.11" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

.venv-latest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e .
	@touch $@

clean:
	rm -rf .venv .venv-latest runs site *.egg-info
