# `make demo` and `make test` do all their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests/unit tests/contract tests/kernel
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
SOURCES := $(wildcard probes/*.bpf.c probes/include/*.h)
DEPS := packaging/install-deps.sh
BENCHES := start pipeline real_apps profile calls capture snapshot summary top_cost idle scrape windows overhead marks

.PHONY: help demo test lint unit kernel coverage vm bench soak fuzz chaos objects viewer generate dashboards mark dialyzer \
	wheel packages packages-test clean
help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.run objects ## install what is missing, start a small Erlang node, look at it
	@$(DEPS) demo
	@$(SUDO) bash docs/demo/run.sh $(BIN)/scope-trace

test: $(VENV)/.test objects viewer ## install what the tests need and run them all (root)
	@$(DEPS) test
	@$(MAKE) --no-print-directory lint
	@tests/beams/build-usdt.sh >/dev/null
	@for suite in trixie sid bullseye; do tests/beams/chroot.sh $$suite >/dev/null || exit 1; done
	@tests/dashboards/grafana/install.sh >/dev/null
	@$(SUDO) env SCOPE_REQUIRE_KERNEL=1 SCOPE_CACHE="$${SCOPE_CACHE:-$$HOME/.cache/scope-ebpf}" \
		PYTEST=$(BIN)/pytest tests/run.sh

lint: $(VENV)/.test ## ruff, mypy, clang-format, shellcheck, generated files
	@$(DEPS) build test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@clang-format --dry-run -Werror $(filter-out %generated.h,$(SOURCES))
	@shellcheck packaging/*.sh packaging/scripts/* vagrant/*.sh tests/beams/*.sh tests/packages/*.sh tests/vm/*.sh tests/*.sh docs/demo/*.sh .ci/run
	@mkdir -p build/erlang && erlc -Werror -o build/erlang scope_mark/src/*.erl
	@$(PYTHON) probes/generate.py --check
	@$(BIN)/python docs/metrics.py --check
	@$(BIN)/python packaging/make_schemas.py --check
	@$(PYTHON) packaging/pack_data.py --check

unit: $(VENV)/.test objects ## the tests that need no root
	@$(BIN)/pytest tests/unit tests/contract

kernel: $(VENV)/.test objects ## the tests on real VMs (root)
	@$(SUDO) env SCOPE_REQUIRE_KERNEL=1 $(BIN)/pytest tests/kernel

coverage: $(VENV)/.test objects ## statements that unit, contract and kernel tests run, by module; TESTS="..." (root)
	@$(DEPS) test
	@$(SUDO) rm -rf build/coverage && mkdir -p -m 1777 build/coverage
	@$(SUDO) env SCOPE_REQUIRE_KERNEL=1 $(BIN)/coverage run -m pytest $(TESTS) || failed=1; \
		$(SUDO) $(BIN)/coverage combine --quiet && $(SUDO) $(BIN)/coverage report && test -z "$$failed"

vm: $(VENV)/.test objects ## the same counts on other kernels, in emulated machines (minutes each)
	@$(DEPS) build vm
	@$(SUDO) env SCOPE_CACHE="$${SCOPE_CACHE:-$$HOME/.cache/scope-ebpf}" PYTHON=$(BIN)/python \
		tests/vm/run.sh

bench: $(VENV)/.test objects ## every figure that the README quotes (root, two hours)
	@$(DEPS) test bench
	@for name in $(BENCHES); do echo "== $$name"; \
		$(SUDO) $(BIN)/python bench/$$name.py || missed="$$missed $$name"; done; \
		test -z "$$missed" || { echo "short of their figures:$$missed" >&2; exit 1; }

soak: $(VENV)/.test objects ## an hour of BEAMs that come and go under the daemon (root)
	@$(DEPS) test
	@$(SUDO) $(BIN)/python bench/soak.py

fuzz: $(VENV)/.test ## a million mutated captures, configs, rings, memory images and ELF files
	@$(BIN)/python tests/fuzz/fuzz.py $(FUZZ)

chaos: $(VENV)/.test objects ## kill and stop the daemon and its attacher, MINUTES=30 (root)
	@$(DEPS) test
	@$(SUDO) $(BIN)/python bench/chaos.py --minutes $(or $(MINUTES),30)

objects: ## build the BPF objects that are older than their source
	@$(DEPS) build
	@$(PYTHON) packaging/build_objects.py

mark: ## the command scope-mark, into dist/ (erlang-base)
	@escript scope_mark/tools/escript.escript dist/scope-mark

dialyzer: ## types of the Erlang library (erlang-dialyzer; the first time takes minutes)
	@mkdir -p build/dialyzer && erlc +debug_info -o build/dialyzer scope_mark/src/*.erl
	@test -e build/otp.plt || dialyzer --build_plt --output_plt build/otp.plt --apps erts kernel stdlib compiler
	@dialyzer --plt build/otp.plt -Werror_handling -Wunmatched_returns build/dialyzer/*.beam

viewer: ## put speedscope, the viewer of flame graphs, into the package
	@$(DEPS) viewer
	@$(PYTHON) packaging/build_viewer.py

generate: $(VENV)/.test ## make what probes/events.toml, layouts, the catalogue of metrics and the records of documents are the source of
	@$(PYTHON) probes/generate.py
	@$(BIN)/python docs/metrics.py
	@$(BIN)/python packaging/make_schemas.py
	@$(PYTHON) packaging/pack_data.py

dashboards: $(VENV)/.test ## make the Grafana dashboards of dashboards/boards
	@$(BIN)/python dashboards/build.py

completions: $(VENV)/.test ## what bash, zsh and fish complete, from the parsers
	@$(BIN)/python packaging/make_completions.py

wheel: $(VENV)/.test objects viewer completions ## a wheel with the objects, the viewer and the completions in it
	@$(BIN)/pip -q wheel --no-deps -w dist .

packages: $(VENV)/.test objects viewer completions ## a deb and an rpm in dist/
	@$(BIN)/python packaging/build_packages.py

packages-test: packages ## lintian, vagrant and its provisioning in a bare Debian (root, minutes)
	@$(DEPS) test packages
	@lintian --allow-root --fail-on error,warning dist/*.deb
	@$(SUDO) env SCOPE_CACHE="$${SCOPE_CACHE:-$$HOME/.cache/scope-ebpf}" \
		$(BIN)/pytest tests/packages/*test*.py tests/vagrant/provision_test.py

clean: ## remove what was built here (not the cache of test VMs)
	rm -rf $(VENV) build dist scope_ebpf/kernel/objects scope_ebpf/sinks/viewer scope_ebpf/completions

$(VENV)/.run: pyproject.toml
	@$(DEPS) run
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the Python packages into $(VENV)"
	@$(BIN)/pip -q install --disable-pip-version-check -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run pyproject.toml
	@echo "installing the Python packages for the tests into $(VENV)"
	@$(BIN)/pip -q install --disable-pip-version-check -e '.[test]'
	@touch $@
