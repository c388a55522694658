# `make` lists what there is to do. A second run of anything reuses what stands.
SHELL := /bin/bash
.DEFAULT_GOAL := help

SEQUENCE ?=
FRAMES ?=
OUTPUT ?= runs/demo
ARGS ?=

.PHONY: help setup ros demo test lint format gpu-bundle clean distclean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12
	@echo
	@echo "Variables: PYTHON=/path/to/python3.12 (any), SEQUENCE=dir OUTPUT=dir (demo), FRAMES=dir (gpu-bundle), ARGS='...' (demo, test)"

setup: ## Make .venv with the command line .venv/bin/sld (no ROS)
	@tools/setup.sh core

ros: ## setup, then ROS 2 and the interfaces; enter it with: . tools/env.sh
	@tools/setup.sh ros

demo: ros ## Teach a room and localize in it, through the ROS nodes; report in runs/demo
	@. tools/env.sh && python -P -m sld_ros.demo $(if $(SEQUENCE),--sequence '$(SEQUENCE)') --output '$(OUTPUT)' $(ARGS)

test: ros ## Run the tests; more: make test ARGS='-m slow'
	@. tools/env.sh && pytest $(ARGS)

lint: setup ## Check style and formatting with ruff
	@. tools/env.sh && ruff check . && ruff format --check .

gpu-bundle: setup ## Pack what tools/gpu_check.sh needs on a machine without network; FRAMES=dir
	@tools/gpu_bundle.sh $(if $(FRAMES),'$(FRAMES)')

format: setup ## Format the code, and repair what ruff can repair safely
	@. tools/env.sh && ruff check --fix . && ruff format .

clean: ## Remove what was built; .venv and your recordings and scenes (runs/, *.sld) stay
	rm -rf build install log *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -not -path './runs/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf .venv
