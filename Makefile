# make course    set up, then run every notebook     (MODE=quick|full|modal, ONLY="02 03";
#                modal tells what it will cost and asks; YES=1: go on, BUDGET_USD=5: at most)
# make lab       set up, then open copies of the notebooks, in work/   (FRESH=1: new ones)
# make decide    set up (light), then write a verdict from your numbers to
#                runs/decision.md   (ARGS="--volume 50000 …", ARGS=--help; else an example)
# make check     check this machine, set up, then check the rest; output to paste
# make reset     give one notebook a fresh copy in work/: make reset ONLY=04
# make bundle    write all packages and the model to BUNDLE=folder, a stick say, for other
#                machines (BUNDLE_FOR="linux macos", BUNDLE_PYTHON="3.11 3.12")
# make test      set up, then check style and imports and run the tests
# make test-all  the same with the slow tests too
# make site      set up, then write the course as web pages to site/
# make slides    set up, then write the workshop's slides to site/slides.html
#                (AGENDA="90 minutes", "half a day" or "a day")
# make bench     set up, then run the benchmarks
# make retrain   set up, then train a short shipped run again and compare
# make publish   put the outputs of a full run into the notebooks and data/runs
# make figure    write the README's figure and tables anew from data/runs, and the
#                workshop's agendas and numbers
# make format    mend the layout of code and notebooks
# make lock      write requirements.lock from pyproject.toml   (UPGRADE=1: newest versions)
# make clean     remove environments, runs and the site; work/ stays
# With LIGHT=1, lab and course need no PyTorch: notebooks 00 to 03 and 10. CUDA=1 installs
# PyTorch for GPUs, LATEST=1 the newest versions of all. ENV=folder takes an environment
# that is there, a conda one say, and sets nothing up. LAB=words goes to JupyterLab. With
# BUNDLE=folder a set-up takes all from there, and needs no network.

PYTHON ?= python3
MODE ?= quick
ONLY ?= [0-9][0-9]*
JOBS ?= 2
# A decision needs no PyTorch; an environment that is there, with all, does as well.
ifeq ($(MAKECMDGOALS),decide)
LIGHT ?= $(if $(wildcard .venv/.ready),,1)
endif
VENV := .venv$(if $(LIGHT),-light)$(if $(LATEST),-latest)
# ENV of the command line alone: shells and containers have a variable of that name, too.
GIVEN := $(if $(filter command,$(firstword $(origin ENV))),$(ENV))
# Some shells, zsh among them, hand on the ~ of ENV=~/env as it is.
GIVEN := $(patsubst ~/%,$(HOME)/%,$(GIVEN))
override BUNDLE := $(patsubst ~/%,$(HOME)/%,$(BUNDLE))
BIN := $(or $(GIVEN),$(VENV))/bin
READY := $(if $(GIVEN),,$(VENV)/.ready)
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]*_*.ipynb))
CHOSEN := $(sort $(foreach number,$(ONLY),$(wildcard notebooks/$(number)_*.ipynb)))

# The course is not installed: whatever starts here finds the `utils` of this folder, and
# hands the path on to kernels and workers. An installed copy would serve a second clone
# the first one's code.
export PYTHONPATH := $(CURDIR)
# The kernel of this environment, not one of the same name in the home folder.
export JUPYTER_PREFER_ENV_PATH := 1
# No notes of the debugger in the outputs.
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Many containers set it, and then each kernel compiles PyTorch's and TRL's modules anew.
unexport PYTHONDONTWRITEBYTECODE

ifeq ($(filter quick full modal,$(MODE)),)
$(error MODE=$(MODE) is no mode: choose quick, full or modal)
endif
$(foreach number,$(ONLY),$(if $(wildcard notebooks/$(number)_*.ipynb),,$(error \
	ONLY=$(number) is no notebook: choose among $(notdir $(basename $(NOTEBOOKS))))))

ifneq ($(GIVEN),)
ifeq ($(wildcard $(BIN)),)
$(error ENV=$(GIVEN) is no environment: there is no $(BIN))
endif
endif

.PHONY: course lab reset check bundle decide test test-all site slides bench retrain publish figure format lock clean help
.DEFAULT_GOAL := course

help:
	@sed -n '/^# /!q; s/^# //p' Makefile

# --- the course ------------------------------------------------------------------------

# No look-up may hang.
ifneq ($(MODE),modal)
course: export HF_HUB_OFFLINE ?= 1
endif
course: $(READY)
	@# What is rented on Modal is told, and agreed to, before the first notebook.
	$(if $(filter modal,$(MODE)),@$(BIN)/python -m utils.course.plan $(CHOSEN))
	@mkdir -p runs/$(MODE); \
	begun=$$(date +%s); \
	for notebook in $(CHOSEN); do \
		copy=runs/$(MODE)/$${notebook#notebooks/}; \
		started=$$(date +%s); \
		echo "$$notebook"; \
		$(BIN)/papermill --log-level WARNING -p MODE $(MODE) --cwd notebooks \
			$(if $(filter modal,$(MODE)),--stdout-file -) \
			-k python3 $$notebook $$copy || { \
			echo "Stopped: $$notebook failed. See the error in its place in $$copy"; \
			exit 1; \
		}; \
		echo "$$notebook: $$(($$(date +%s) - started)) seconds"; \
	done; \
	echo "$(words $(CHOSEN)) of $(words $(NOTEBOOKS)) notebooks: $$(($$(date +%s) - begun)) seconds. Executed copies: runs/$(MODE)/"

# The reader works on copies, which git ignores. A copy that is there stays as it is.
lab: $(READY)
	@mkdir -p work; \
	if [ -n "$(FRESH)" ] && ls work/*.ipynb >/dev/null 2>&1; then \
		old=work/before-$$(date +%Y%m%d-%H%M%S); \
		mkdir $$old && mv work/*.ipynb $$old && echo "Your copies are now in $$old"; \
	fi; \
	for notebook in $(NOTEBOOKS); do \
		copy=work/$${notebook#notebooks/}; \
		if [ ! -e $$copy ]; then cp $$notebook $$copy; \
		elif [ $$notebook -nt $$copy ]; then \
			echo "$$copy is older than $$notebook (FRESH=1 copies them anew)"; \
		fi; \
	done
	$(BIN)/jupyter lab --ServerApp.root_dir=. $(LAB) work/00_start_here.ipynb

# For who broke a copy: a new one of that notebook alone.
reset:
	@$(if $(filter command,$(firstword $(origin ONLY))),,$(error \
		say which notebook gets a fresh copy: make reset ONLY=04))
	@set -e; mkdir -p work; \
	old=$$(mktemp -d work/before-$$(date +%Y%m%d-%H%M%S)-XXX); \
	for notebook in $(CHOSEN); do \
		copy=work/$${notebook#notebooks/}; \
		if [ -e $$copy ]; then mv $$copy $$old; echo "Your copy is now in $$old"; fi; \
		cp $$notebook $$copy; echo "$$copy is new. Where it is open: File, Reload"; \
	done; \
	rmdir $$old 2>/dev/null || true

decide: $(READY)
	@$(BIN)/python -m utils.costs.decide $(ARGS)

# What is set up with BUNDLE=folder comes from there alone: `bundle` writes one.
ifneq ($(BUNDLE),)
ifeq ($(filter bundle,$(MAKECMDGOALS)),)
FROM := file://$(shell cd "$(BUNDLE)" && pwd | sed 's/ /%20/g')
# For pip, also where a notebook calls it for the model's weights.
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(FROM)
endif
endif
CHECK = $(if $(LIGHT),--light) $(if $(FROM),--bundle "$(BUNDLE)")
bundle: $(READY)
	@$(BIN)/python -m utils.course.bundle "$(or $(BUNDLE),bundle)" $(if $(LIGHT),--light) \
		$(addprefix --system ,$(BUNDLE_FOR)) $(addprefix --python ,$(BUNDLE_PYTHON))

# --- checks ----------------------------------------------------------------------------

# The set-up has checked what it needs; here all of it comes once more, in one table.
# Python may be gone from an environment: then the other one says so.
check: export HF_HUB_OFFLINE ?= 1
check: $(READY)
	@python=$(BIN)/python; $$python -c '' 2>/dev/null || python=$(PYTHON); \
	$$python utils/course/check.py $(CHECK)

# One thread a process: on a busy machine threads that wait for each other cost tenfold.
test test-all bench check: export OMP_NUM_THREADS = 1
test: SELECT = -m "not slow"
test test-all: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(SELECT)

bench: $(READY)
	$(BIN)/python tests/bench/bench_sandbox.py
	$(BIN)/python tests/bench/bench_training.py
	$(BIN)/python tests/bench/bench_rl.py

retrain: $(READY)
	$(BIN)/python tests/retrain.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# --- what is published -----------------------------------------------------------------

site: $(READY)
	$(BIN)/sphinx-build -M html . site -c utils/course -W --keep-going -q
	@echo "Open site/html/index.html"

slides: $(READY)
	@$(BIN)/python -m utils.course.workshop slides "$(or $(AGENDA),a day)"

publish: $(READY)
	$(BIN)/python tests/release.py publish

figure: $(READY)
	$(BIN)/python tests/release.py readme
	$(BIN)/python -m utils.course.workshop fill

# --- environments ----------------------------------------------------------------------

# PyTorch comes first, for its builds differ: on Linux without an NVIDIA GPU the one for
# CPUs, a tenth of the other's size, from PyTorch's own index; where that is not reached,
# the build that pip finds. All the rest comes from the plain index. uv does it, or else
# pip: more slowly, but with whatever index pip is set up for.
UV = UV_HTTP_RETRIES=1 $(BIN)/python -m uv pip install --quiet --python $(BIN)/python \
	$(if $(FROM),--no-index --find-links $(FROM))
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
GPU = $(or $(CUDA),$(filter-out Linux,$(shell uname -s)),$(shell command -v nvidia-smi 2>/dev/null))
# The locked versions, or what pyproject.toml asks for: all of it, or no more than LIGHT.
LISTED = $(VENV)/listed.txt
PINS = $(if $(LATEST),$(LISTED),requirements.lock)
WANTED = $(if $(LIGHT),-r $(LISTED) -c,-r) $(PINS)
LIST = import sys, tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	extras = [project["optional-dependencies"][name] for name in sys.argv[1:]]; \
	print(*project["dependencies"], *sum(extras, []), sep="\n")

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) utils/course/check.py --setup $(CHECK)
	$(PYTHON) -m venv $(if $(LATEST),--clear) $(VENV)
	@$(BIN)/python -c '$(LIST)' $(if $(LIGHT),,train dev) > $(LISTED)
	$(PIP) -c $(PINS) uv || echo "uv is not to be had; pip takes its place."
	$(if $(LIGHT)$(GPU)$(FROM),,$(UV) --torch-backend cpu -c $(PINS) torch || { \
		echo "PyTorch's own index is not reached; pip looks for a build."; \
		$(PIP) -c $(PINS) torch; \
	})
	$(UV) $(WANTED) || { echo "uv did not do it; pip tries."; $(PIP) $(WANTED); }
	$(if $(FROM),$(if $(LIGHT),,$(BIN)/python -c "from utils.training import weights; weights.fetch()"))
	@# For kernels that others start, as VS Code: an environment belongs to its folder.
	@$(BIN)/python -c 'import os, sysconfig; open(sysconfig.get_path("purelib") + "/beneath_the_api.pth", "w").write(os.getcwd() + "\n")'
	@# No advice on encryption from each kernel: it talks to this machine alone, and signs.
	@mkdir -p $(VENV)/etc/ipython
	@echo 'c.IPKernelApp.log_level = "ERROR"' > $(VENV)/etc/ipython/ipython_kernel_config.py
	@touch $@

# Left out of the lock file: PyTorch's builds for a CPU need none of these, and its build
# for GPUs brings them along in the versions that it wants.
FOR_CUDA := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas \
	cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse \
	cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
lock: $(READY)
	$(BIN)/python -m uv pip compile --quiet --universal $(if $(UPGRADE),--upgrade) \
		--python-version 3.11 $(addprefix --no-emit-package ,$(FOR_CUDA)) \
		--extra train --extra dev --custom-compile-command "make lock" \
		pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .venv-light .venv-latest runs site *.egg-info
