# SPDX-License-Identifier: Apache-2.0
# Every target that needs the environment builds it first; `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev top doctor demo test test-stack lint format docs dashboards bench stack-images lint-stack lock clean

help: ## say what there is
	@printf 'Kernob: which process sends how many bytes to whom.\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nThe environment is %s, the program %s/kernob.\n' '$(VENV)' '$(BIN)'

setup: ## install what is missing, build .venv
	@sh scripts/setup.sh

setup-dev: ## the same, with what tests and lint need
	@sh scripts/setup.sh --dev

top: setup ## live traffic by process and destination (needs root)
	@$(BIN)/kernob top

doctor: setup ## what this kernel offers, and what is missing
	@$(BIN)/kernob doctor

demo: setup ## a small business, faults in it, what Kernob says of each (root, Docker; ARGS="--only broker")
	@sh demo/install.sh
	@tests/stack/engine.sh start
	@$(BIN)/python -m demo $(ARGS)

test: setup-dev ## run the tests (ARGS="-k name" selects; as root the kernel tests run too)
	@$(BIN)/python -m pytest $(ARGS)

test-stack: setup-dev ## run the stack's tests (root, Docker; ARGS="-m slow_stack" the long ones)
	@tests/stack/engine.sh start
	@$(BIN)/python -m pytest tests/stack --capture=sys $(or $(ARGS),-m "not slow_stack")

lint: setup-dev ## ruff, mypy --strict, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --python-version 3.11 grafana
	@find bpf -path bpf/include -prune -o \( -name '*.c' -o -name '*.h' \) -print0 | \
		xargs -0 -r $(BIN)/clang-format --dry-run -Werror

format: setup-dev ## let ruff and clang-format rewrite the sources
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .
	@find bpf -path bpf/include -prune -o \( -name '*.c' -o -name '*.h' \) -print0 | \
		xargs -0 -r $(BIN)/clang-format -i

docs: setup ## write docs/metrics.md from the code
	@$(BIN)/python -m scripts.metrics_doc

dashboards: setup-dev ## write grafana/dashboards/*.json from the code
	@$(BIN)/python -m grafana.generate

bench: setup-dev ## run all benchmarks (half an hour; needs gcc)
	@$(BIN)/python -m benchmarks

stack-images: ## build the stack's images from packages, where no image registry is reachable
	@sh docker/stack-images.sh

lint-stack: ## hadolint, shellcheck, yamllint, compose's own check of the stack's files
	@sh docker/lint.sh

LOCK := uv pip compile pyproject.toml --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' --quiet

lock: ## renew requirements*.lock from pyproject.toml (needs uv)
	@$(LOCK) --extra build -o requirements.lock
	@$(LOCK) --extra build --extra dev --extra dashboards -c requirements.lock -o requirements-dev.lock

clean: ## remove .venv and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/stack/grafana/node_modules
