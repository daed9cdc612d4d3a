PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VLLM_VENV ?= .venv-vllm

.PHONY: demo test test-fast test-browser test-triton test-vllm view check install install-dev clean

demo: install  ## Train the embedded search agent with AT²PO and show what it learned.
	$(BIN)/spanwise train at2po_search

test: install-dev  ## Unit, property, end-to-end tests and doctests.
	$(BIN)/python -m pytest -n auto --dist loadgroup

test-fast: install-dev  ## The same without what is slow or starts processes.
	$(BIN)/python -m pytest -n auto --dist loadgroup \
		-m "not (slow or processes or browser or compiler or vllm)"

test-browser: install-dev  ## The page of `spanwise view` in a headless chromium.
	$(BIN)/python -m pytest tests/browser -m browser

test-triton: install-dev  ## The GPU kernel: in Triton's interpreter (a wheel of 290 MB), or on a GPU.
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt triton
	$(BIN)/python -m pytest tests/test_cuda_kernel.py

test-vllm: $(VLLM_VENV)/installed  ## The vLLM sampler, with vLLM for CPUs in an environment of its own.
	$(VLLM_VENV)/bin/python -m pytest tests/vllm -m vllm

view: install  ## See the newest run in the browser: make view, or make view RUN="runs/a runs/b".
	$(BIN)/spanwise view $(or $(RUN),$(shell ls -dt runs/*/ 2>/dev/null | head -1))

check: install-dev  ## Format, lint, types: what a reviewer would say first.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VLLM_VENV)/installed: pyproject.toml constraints-vllm.txt .ci/install-vllm
	.ci/install-vllm $(PYTHON) $(VLLM_VENV)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info
