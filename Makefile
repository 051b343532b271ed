# make run: set up once, then open the window. make test: set up once, then the quick tests.
PYTHON ?= python3
BIN := .venv/bin
SETUP_INPUTS := pyproject.toml constraints.txt tools/setup.py
# three workers on two cores: many tests wait for an engine
TEST := OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist worksteal
.DEFAULT_GOAL := help

.PHONY: bench bench-memory exactness growth study study-quick help run setup setup-dev test test-full lint screenshot bench-startup clean

help:
	@echo "make run         set up what is missing and open the window (without a display: the demo)"
	@echo "make test        set up what is missing and run the quick tests"
	@echo "make test-full   all tests, the long ones too"
	@echo "make exactness   every method on every family against peft; writes docs/exactness.md"
	@echo "make bench       speed and memory beside peft + Trainer, against the targets (ARGS=--quick: a trial)"
	@echo "make study       methods and ranks compared: does it learn? (make study-quick: in ten minutes)"
	@echo "make growth      speed and memory against length, rank, batch, layers and rows"
	@echo "make lint        ruff, pyright, import-linter"
	@echo "make clean       remove .venv and what the tools left (models and runs stay)"

run: setup
	@$(BIN)/python -m app.qt_libraries --install
	@$(BIN)/lora-workbench $(ARGS)

setup: .venv/.setup-run

setup-dev: .venv/.setup-dev
	@$(BIN)/python -m app.qt_libraries --install --plugin offscreen

.venv/.setup-run: $(SETUP_INPUTS)
	@$(PYTHON) tools/setup.py

.venv/.setup-dev: $(SETUP_INPUTS)
	@$(PYTHON) tools/setup.py --dev

test: setup-dev
	$(TEST) -m "not full" $(ARGS)

test-full: setup-dev
	$(TEST) $(ARGS)

exactness: setup-dev
	$(TEST) tests/core/lora/exactness --exactness-table docs/exactness.md $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/pyright core app
	$(BIN)/lint-imports

screenshot: setup-dev
	QT_QPA_PLATFORM=offscreen $(BIN)/python tools/screenshot.py docs/screenshot.png

study: setup-dev
	$(BIN)/python bench/methods.py $(ARGS)
	$(BIN)/python bench/methods.py --report

study-quick: setup-dev
	$(BIN)/python bench/methods.py --quick $(ARGS)

bench: setup-dev
	$(BIN)/python bench/training.py $(ARGS)

growth: setup-dev
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[plots]"
	$(BIN)/python bench/growth.py $(ARGS)

bench-memory: setup-dev
	$(BIN)/python bench/memory.py $(ARGS)

bench-startup: setup
	$(BIN)/python bench/startup.py

clean:
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info
