# What one does with a checkout. Each target sets up what it needs; Rust and python3 are yours.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

# More arguments for `demo`, `draw`, `bench` and `quality`: make demo ARGS="--records 5000 --json"
ARGS ?=
# The python that .venv is made with: 3.11 or later.
PYTHON ?= python3
# Data sets that `test` trains on and streams; those that are not there are skipped.
STREAMED ?= ../shared/data/adbench/34_smtp.npz ../shared/data/adbench/24_mnist.npz
CARGO_DENY_VERSION := 0.20.2
MDBOOK_VERSION := 0.5.4

# For the binaries that are started without cargo; for cargo's own see .cargo/config.toml.
export ORT_DYLIB_PATH ?= $(CURDIR)/.onnxruntime/libonnxruntime.so
# Tests mostly wait, so three run beside each other for each core.
export RUST_TEST_THREADS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? 3 * n : 12)))

VENV := .venv/.installed
# The package `residuald` in .venv, and what it is built from. Cargo knows which of src/ that is, and rebuilds no more than it must.
PACKAGE := .venv/.residuald
PACKAGE_SOURCES := Cargo.toml Cargo.lock $(shell find src python -type f -name '*.rs' -o -type f -path 'python/*' -name '*.toml' \
    -o -type f -path 'python/package/*' -name '*.py*' -not -path '*/__pycache__/*')
SCRIPTS := .ci/run $(wildcard deploy/*.sh tests/*.sh tests/*/*.sh benches/*.sh benches/*/*.sh)
PYTHON_CODE := models/trainer python $(wildcard tests benches docs/*.py)

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- Run -------------------------------------------------------------------------------------

.PHONY: demo
demo: onnxruntime build ## score the sample stream on an embedded broker, live in the terminal
	target/release/residuald demo $(ARGS)

# What `draw` draws.
PROMPT ?= gravel with a dark stain

.PHONY: draw
draw: onnxruntime build text-encoder ## draw four images into drawn/: PROMPT="gravel with a dark stain"
	target/release/residuald generate models/textures --prompt "$(PROMPT)" --count 4 --out drawn --sheet drawn/sheet.png --force $(ARGS)

.PHONY: build
build: ## target/release/residuald
	cargo build --release --locked

# Where `install` puts what `make build onnxruntime` made, and what it takes.
PREFIX ?= /usr/local
RESIDUALD ?= target/release/residuald

.PHONY: install
install: ## residuald into PREFIX/bin and ONNX Runtime into PREFIX/lib/onnxruntime: sudo make install
	@[ -x "$(RESIDUALD)" ] || { echo "no $(RESIDUALD): run \`make build onnxruntime\` first" >&2; exit 1; }
	install -D -m 755 "$(RESIDUALD)" "$(DESTDIR)$(PREFIX)/bin/residuald"
	deploy/onnxruntime.sh --dest "$(DESTDIR)$(PREFIX)/lib/onnxruntime"

.PHONY: onnxruntime
onnxruntime: ## bring ONNX Runtime into .onnxruntime/
	@deploy/onnxruntime.sh

# models/textures reads words with it. It is not in the repository.
TEXT_ENCODER := models/textures/text_encoder/model.onnx

.PHONY: text-encoder
text-encoder: $(TEXT_ENCODER) ## bring the text encoder of models/textures
$(TEXT_ENCODER): models/trainer/examples/minilm.py | $(PACKAGE)
	.venv/bin/python $< --out models/textures

# --- Check -----------------------------------------------------------------------------------

# What the tests say, with the seconds of each.
export TEST_TIMES := $(CURDIR)/target/test-times
CARGO_TEST := cargo --config "target.'cfg(all())'.runner = '$(CURDIR)/tests/timed.sh'" test --locked
PYTEST := .venv/bin/python -m pytest --durations=10
NOTED := | tee -a $(TEST_TIMES)

.PHONY: test
test: onnxruntime tools venv text-encoder kafka chart-tools lint ## everything that must hold: lint, Rust tests, trainer tests
	@mkdir -p target && : >$(TEST_TIMES)
	cargo test --locked --no-run
	@# The Rust tests wait and the trainer's compute, so they share the time. The latter are said when both are done.
	nice $(PYTEST) models/trainer >target/trainer-tests 2>&1 & trainer=$$!; trap 'kill $$trainer 2>/dev/null || true' EXIT; \
	$(CARGO_TEST); \
	held=0; wait $$trainer || held=$$?; cat target/trainer-tests $(NOTED); exit $$held
	@if pkg-config --exists libsasl2; then set -x; $(CARGO_TEST) --features kerberos --test kerberos; \
	else echo "!!! KERBEROS NOT TESTED: install libsasl2-dev (make tools)"; [ -z "$${RESIDUALD_TEST_STRICT:-}" ]; fi
	$(MAKE) chaos-short
	for set in $(STREAMED); do .venv/bin/python tests/stream_dataset.py "$$set"; done
	$(PYTEST) -q python $(NOTED)
	$(PYTEST) -q tests/triage tests/gpu $(NOTED)
	$(PYTEST) -q tests/files tests/foreign $(NOTED)
	$(PYTEST) -q tests/tables $(NOTED)
	$(PYTEST) -q tests/diffusion $(NOTED)
	$(PYTEST) -q tests/generate $(NOTED)
	for tests in monitoring chart; do RESIDUALD=$(CURDIR)/target/debug/residuald $(PYTEST) -q tests/$$tests $(NOTED); done
	@echo "the ten slowest tests, in seconds:"
	@sed -nE 's/^test (.*) \.\.\. [A-Za-z]+ <([0-9.]+)s>$$/\2 \1/p; s/^([0-9.]+)s (call|setup) +(.*)/\1 \3/p' $(TEST_TIMES) \
	    | sort -rn | awk 'NR <= 10'

# The advisory database is a git repository on GitHub, which not every network lets through. What was checked is only as good as the
# database is young, so its date is said.
ADVISORIES = $(firstword $(wildcard $(or $(CARGO_HOME),$(HOME)/.cargo)/advisory-dbs/*/))

.PHONY: lint
lint: venv deny mdbook ## formatting, clippy, licences and duplicates, ruff, shell scripts, the documents' links
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --locked check licenses bans sources
	@$(MAKE) advisories
	.venv/bin/ruff check --config models/trainer/pyproject.toml $(PYTHON_CODE)
	.venv/bin/ruff format --check --config models/trainer/pyproject.toml $(PYTHON_CODE)
	for script in $(SCRIPTS); do bash -n "$$script"; done
	@if command -v shellcheck >/dev/null; then set -x; shellcheck $(SCRIPTS); \
	else echo "!!! SHELL SCRIPTS NOT CHECKED: install shellcheck (make tools)"; fi
	.venv/bin/python -m pytest -q tests/docs

.PHONY: docs
docs: mdbook ## the book of docs/ as HTML, in docs/book
	$(MDBOOK) build docs

.PHONY: process
process: venv onnxruntime target/release/residuald ## the commands of docs/src/process.md, and its pictures
	PATH="$(CURDIR)/target/release:$(CURDIR)/.venv/bin:$$PATH" ORT_DYLIB_PATH="$(CURDIR)/.onnxruntime/libonnxruntime.so" .venv/bin/python docs/process.py

.PHONY: advisories
advisories: deny
	@cargo deny --locked fetch db </dev/null 2>/dev/null \
	    || echo "!!! ADVISORIES NOT UP TO DATE: the RustSec database could not be fetched from GitHub"
	@$(MAKE) check-advisories

.PHONY: check-advisories
check-advisories: # in a make of its own, which sees the database that was fetched
	@if [ -n "$(ADVISORIES)" ]; then \
	    echo "advisories: the RustSec database of $$(git -C "$(ADVISORIES)" log -1 --format=%cs)"; \
	    cargo deny --locked check --disable-fetch advisories; \
	else \
	    echo "!!! ADVISORIES NOT CHECKED: there is no copy of the RustSec database"; \
	fi

# What `chaos` does; tests/chaos --help says more. FAULTS: kind[:count],... of those below.
KILLS ?= 10
RECORDS ?= 100000
DELIVERY ?= exactly-once
SEED ?= 0
DAEMONS ?= 2
GROUP ?= cooperative
FAULTS ?= kill,stop,freeze,term,rolling,brokers,crash,network,sleep,clock,disk,partitions
CHAOS := .venv/bin/python tests/chaos

.PHONY: chaos
chaos: onnxruntime build tools venv kafka ## break everything in mid-stream, then look for every record: KILLS=50 RECORDS=1000000
	@$(CHAOS) --records $(RECORDS) --kills $(KILLS) --delivery $(DELIVERY) --seed $(SEED) --daemons $(DAEMONS) \
	    --group $(GROUP) --faults $(FAULTS) --residuald target/release/residuald

.PHONY: chaos-short
chaos-short: # the part of `chaos` that `test` has time for, with the binary that was built last
	.venv/bin/python -m pytest -q tests/chaos
	$(CHAOS) --records 30000 --kills 5 --faults kill,stop:1,network:1

MINUTES ?= 10
.PHONY: memory-test
memory-test: onnxruntime venv kafka ## bombs of every codec and image format under a cgroup, as root: MINUTES=10 each
	RESIDUALD_MEMORY_MINUTES=$(MINUTES) cargo test --locked --test memory -- --nocapture --test-threads 1

.PHONY: deploy-test
deploy-test: onnxruntime build tools venv chart-tools ## what is in deploy/ and grafana/, against a real Prometheus, Helm and the schemas
	for tests in monitoring chart; do .venv/bin/python -m pytest -q tests/$$tests; done

.PHONY: bench
bench: onnxruntime build ## cost of each part and of the whole, then the micro-benchmarks
	target/release/residuald bench --bundle models/payments $(ARGS)
	cargo bench --locked

# What `bench-peers` does; --fast is one short round, --help says more.
PEERS ?= --rounds 5

.PHONY: bench-peers
bench-peers: onnxruntime build tools venv kafka .cache/peers/ddpm.pt .cache/peers/best .cache/peers/wide ## beside Python, Quix Streams, Java and a DDPM on one Kafka: 50 minutes; PEERS=--fast
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
	[ -d benches/peers/.venv ] || "$(PYTHON)" -m venv benches/peers/.venv
	benches/peers/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benches/peers/requirements-quix.txt
	mvn --batch-mode --quiet --strict-checksums --file benches/peers/java/pom.xml package
	.venv/bin/python benches/peers/run.py $(PEERS)

.PHONY: gpu-kit
gpu-kit: venv ## what proves and measures a GPU, in parts to carry: benches/gpu/README.md
	cargo build --release --locked --bin residuald --example device
	deploy/onnxruntime.sh --gpu
	.venv/bin/python benches/gpu/kit.py $(ARGS)

.PHONY: bench-scaling
bench-scaling: onnxruntime build tools venv kafka ## cost by features, message and image size, partitions, processes: 20 minutes
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r benches/peers/requirements.txt
	.venv/bin/python benches/scaling/run.py $(ARGS)

.cache/peers/history.ndjson.gz: | $(VENV)
	mkdir -p .cache/peers
	.venv/bin/python models/trainer/examples/payments.py --history $@ --sample .cache/peers/sample.ndjson.gz

.cache/peers/ddpm.pt: benches/peers/ddpm.py .cache/peers/history.ndjson.gz
	.venv/bin/python benches/peers/ddpm.py .cache/peers/history.ndjson.gz $@

# Scorers with more arithmetic than that of models/payments.
.cache/peers/wide: WIDER := --width 256
.cache/peers/best .cache/peers/wide: .cache/peers/history.ndjson.gz
	.venv/bin/residuald-train tabular --data $< --schema models/trainer/examples/payments_schema.json \
	    --name payments-$(@F) --version 1 --recipe best --steps 2000 $(WIDER) --out $@.part
	.venv/bin/residuald-train screen $@.part --data $<
	rm -rf $@
	mv $@.part $@

# What `quality` measures on: two families of labelled sets (.npz or .csv), and how; results.json there is gone on from.
# The second is OddBench: benchmarks/oddbench/*.npz of the public repository psorus/Outformer, all of them or some. With
# `git --git-dir REPO archive HEAD benchmarks/oddbench | tar x --strip-components=1 -C DIR` they are in DIR/oddbench.
QUALITY_DATA ?= ../shared/data/adbench
QUALITY_ODDBENCH ?= ../shared/data/oddbench
QUALITY_OUT ?= .cache/quality
QUALITY ?= --protocol clean published --seeds 5 --recipe best hybrid kernel blind

.PHONY: quality
quality: quality-data venv ## detection of every recipe on two families of sets (QUALITY_DATA, QUALITY_ODDBENCH), beside ten simpler methods: hours, resumable
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r models/trainer/bench.lock
	@[ -d "$(QUALITY_ODDBENCH)" ] || echo "WARNING: no $(QUALITY_ODDBENCH): OddBench is skipped, so nothing is judged on sets that nobody tuned on; see QUALITY_ODDBENCH in the Makefile" >&2
	.venv/bin/residuald-train bench --data "$(QUALITY_DATA)" $$([ -d "$(QUALITY_ODDBENCH)" ] && printf '%s' '$(QUALITY_ODDBENCH)') \
	    --out "$(QUALITY_OUT)" $(QUALITY) $(ARGS)

# What `quality-generate` does: GENERATE="--seeds 5 --part report". It also runs on the history of models/payments.
GENERATE_OUT ?= .cache/generate
GENERATE ?= --seeds 5
.PHONY: quality-generate
quality-generate: quality-data venv $(GENERATE_OUT)/payments.ndjson.gz ## drawn tables beside CTGAN, TVAE, a Gaussian copula and ForestDiffusion: hours, resumable
	[ -d "$(GENERATE_OUT)/.venv" ] || "$(PYTHON)" -m venv "$(GENERATE_OUT)/.venv"
	"$(GENERATE_OUT)/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r models/trainer/generate.lock
	echo "import site; site.addsitedir('$$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')')" \
	    >"$$("$(GENERATE_OUT)/.venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/trainer.pth"
	@# What was measured before; without this line, everything is measured again.
	[ -f "$(GENERATE_OUT)/results.json" ] || cp models/trainer/generate_results.json "$(GENERATE_OUT)/results.json"
	"$(GENERATE_OUT)/.venv/bin/python" -m residuald_train.cli bench-generate --data "$(QUALITY_DATA)" --table $(GENERATE_OUT)/payments.ndjson.gz \
	    --schema models/trainer/examples/payments_schema.json --out "$(GENERATE_OUT)" $(GENERATE) $(ARGS)

$(GENERATE_OUT)/payments.ndjson.gz: models/trainer/examples/payments.py
	mkdir -p $(GENERATE_OUT)
	.venv/bin/python models/trainer/examples/payments.py --history $@ --sample $(GENERATE_OUT)/sample.ndjson.gz

.PHONY: quality-data
quality-data:
	@if [ ! -d "$(QUALITY_DATA)" ]; then \
	    echo "no $(QUALITY_DATA): give a folder of labelled .npz or .csv sets: make quality QUALITY_DATA=DIR" >&2; exit 1; \
	fi

# Sanitizers find little in safe Rust and would hide how much memory a target takes.
FUZZ_RUNS ?= 1000000
FUZZ_TARGETS := files envelope json avro protobuf wire message outcome image http reload

.PHONY: fuzz
fuzz: ## FUZZ_RUNS inputs through each fuzz target; needs nightly Rust (tests/fuzz/README.md)
	@cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --quiet
	@for target in $(FUZZ_TARGETS); do \
	    echo "fuzzing $$target"; \
	    mkdir -p tests/fuzz/corpus/$$target; \
	    cargo +nightly fuzz run --fuzz-dir tests/fuzz -s none $$target \
	        tests/fuzz/corpus/$$target tests/fuzz/seeds/$$target -- \
	        -runs=$(FUZZ_RUNS) -rss_limit_mb=1024 -max_len=4096 -print_final_stats=1 2>&1 | tail -n 12; \
	done

# --- Set up ----------------------------------------------------------------------------------

# COMMAND:DEBIAN-PACKAGE of what the tests want besides Rust and python3. Where systemd runs, Debian starts Prometheus and
# Alertmanager as services when it installs them; the tests use neither.
WANTED := java:openjdk-17-jre-headless mvn:maven kcat:kcat openssl:openssl shellcheck:shellcheck chromium:chromium \
    promtool:prometheus prometheus-alertmanager:prometheus-alertmanager systemd-analyze:systemd \
    cmake:cmake faketime:faketime /usr/sbin/krb5kdc:krb5-kdc /usr/sbin/kadmin.local:krb5-admin-server kinit:krb5-user \
    /usr/include/sasl/sasl.h:libsasl2-dev /usr/share/doc/libsasl2-modules-gssapi-mit:libsasl2-modules-gssapi-mit

.PHONY: tools
tools: ## install what the tests want: Java, Maven, kcat, openssl, shellcheck, Chromium, Prometheus, Alertmanager, Kerberos, faketime
	@missing=""; \
	for wanted in $(WANTED); do \
	    command -v "$${wanted%%:*}" >/dev/null || [ -e "$${wanted%%:*}" ] || missing="$$missing $${wanted#*:}"; \
	done; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing:$$missing"; \
	    apt-get update -qq; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	else \
	    echo "!!! MISSING FOR THE TESTS:$$missing (Debian's names); install them, or those tests are skipped"; \
	    [ -z "$${RESIDUALD_TEST_STRICT:-}" ]; \
	fi

.PHONY: venv
venv: $(VENV) $(PACKAGE) ## .venv with the trainer, the package residuald, the tests' tools and ruff

# PyPI's torch needs some of CUDA to be imported at all; that of another index (PIP_EXTRA_INDEX_URL) may not.
$(VENV): models/trainer/requirements.lock models/trainer/cuda.lock models/trainer/pyproject.toml tests/requirements.txt
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r models/trainer/requirements.lock
	.venv/bin/python -c 'import torch' 2>/dev/null \
	    || .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r models/trainer/cuda.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@# Without what it depends on: the tests read its vocabulary, and it would bring another build of torchvision.
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e models/trainer
	@touch $@

$(PACKAGE): $(VENV) $(PACKAGE_SOURCES)
	rm -rf target/wheels
	.venv/bin/maturin build --quiet --manifest-path python/Cargo.toml --out target/wheels
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall target/wheels/*.whl
	@touch $@

# Without Java or Maven the tests on a real Kafka skip themselves, or fail when strict.
.PHONY: kafka
kafka: ## bring a real Apache Kafka for the tests into .kafka/
	@tests/kafka/kafka.sh fetch || [ -z "$${RESIDUALD_TEST_STRICT:-}" ]

# Without Go the tests that want Helm skip themselves, or fail when strict.
.PHONY: chart-tools
chart-tools: ## bring Helm, kubeconform and Kubernetes' schemas into .tools/
	@deploy/chart-tools.sh || [ -z "$${RESIDUALD_TEST_STRICT:-}" ]

.PHONY: deny
deny: # cargo-deny, once, into cargo's own bin; --debug compiles in a third of the time
	@if [ "$$(cargo deny --version 2>/dev/null)" != "cargo-deny $(CARGO_DENY_VERSION)" ]; then \
	    cargo install cargo-deny --locked --quiet --debug --version $(CARGO_DENY_VERSION); \
	fi

MDBOOK := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin/mdbook

.PHONY: mdbook
mdbook: # mdBook, once, into cargo's own bin, as cargo-deny
	@if [ "$$($(MDBOOK) --version 2>/dev/null)" != "mdbook v$(MDBOOK_VERSION)" ]; then \
	    cargo install mdbook --locked --quiet --debug --version $(MDBOOK_VERSION) --no-default-features --features search; \
	fi

.PHONY: clean
clean: ## delete what was built and brought, but for cargo's and pip's caches
	-tests/kafka/kafka.sh stop
	cargo clean
	rm -rf .onnxruntime .onnxruntime-gpu .kafka .tools .venv docs/book
