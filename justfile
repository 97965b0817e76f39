# What `scripts/test` has installed for this project is found by every recipe.
tools := env("SCCACHE_DOCK_TOOLS", env("XDG_CACHE_HOME", home_directory() / ".cache") / "sccache-dock/tools")
export PATH := tools / "cargo/bin:" + tools / "python/bin:" + tools / "today/bin:" + env("PATH")

# Everything that needs no test to run.
check: fmt clippy shellcheck deny

fmt:
    cargo fmt --check

clippy:
    cargo clippy --locked --all-targets -- -D warnings

shellcheck:
    shellcheck --external-sources --check-sourced scripts/sccache-docker-manage.sh scripts/github-action.sh scripts/release-version scripts/release-tags scripts/release-manifest scripts/deb scripts/record-session scripts/test tests/fixtures/today/*.sh scripts/podman/docker images/*.sh .ci/run

# Known vulnerabilities need the advisory database, which not every machine reaches.
deny:
    cargo deny --locked check --hide-inclusion-graph licenses bans sources
    if cargo deny --locked fetch db 2>/dev/null; then cargo deny --locked check advisories; else echo "advisories: not checked, the database cannot be reached"; fi

test:
    cargo test --locked --doc
    cargo nextest run --locked

# `run` beside s6, runit, tini, dumb-init, catatonit and supervisord, as far as they are installed; as root.
bench-supervisors *ARGUMENTS:
    PATH="$PATH:{{ tools }}/sccache-0.19.0/bin" cargo bench --locked --bench supervisors -- {{ARGUMENTS}}

# A thousand random events in ten minutes under a loop of real compiles; SOAK_SEED repeats a run.
soak $SOAK_EVENTS="1000" $SOAK_SECONDS="600":
    cargo nextest run --locked --no-capture -E 'test(/^soak::/)'

# Thousands of compiles by builders that are killed, paused and cut off; STORM_SEED repeats a run.
cluster-storm $STORM_COMPILES="5000" $STORM_FAULTS="50":
    cargo nextest run --locked --no-capture -E 'test(/^relay::storm::/)'

# Are the tests of the pure machines sharp? Changes their code in every way that cargo-mutants knows; takes an hour.
mutants *ARGS:
    cargo mutants --file src/supervisor/machine.rs --file src/supervisor/machine/history.rs --timeout 60 {{ARGS}} -- --locked --lib supervisor::machine
    cargo mutants --file src/store/lru.rs --file src/store/lru/quotas.rs --timeout 120 {{ARGS}} -- --locked --lib store::lru
    cargo mutants --file src/store/ghost_list.rs --timeout 120 {{ARGS}} -- --locked --lib store::ghost_list

# The log path of PID 1 beside s6-log, supervisord and a bare multiplexer in C.
bench-logs *arguments:
    cargo bench --locked --bench logs -- {{ arguments }}

# Jobs through the scheduler's front and the relay beside stock sccache-dist, in three minutes; wants root and bubblewrap.
# A number as argument: rounds instead of seven.
bench-front *ARGS:
    cargo bench --locked --bench front -- {{ARGS}}

# How many builders and jobs one relay takes, by simulation
bench-scale *ARGS:
    cargo bench --locked --bench scale -- {{ARGS}}

# A C++ build on one to three builders in containers, beside distcc or icecc; wants Docker, takes nine minutes.
bench-cluster *ARGS:
    cargo bench --locked --bench cluster -- {{ARGS}}

# A Rust project built through the cache, cold and warm, beside local disk, nginx and Redis; takes ten minutes.
bench-project *ARGS:
    cargo bench --locked --bench project -- {{ARGS}}

# A cold runner behind a slow network: with the helper and prefetch, beside the cache alone, a tar of it and S3; takes half an hour.
bench-runner *ARGS:
    cargo bench --locked --bench runner -- {{ARGS}}

# The cache beside nginx, Redis and sccache's own server, in a minute; `--full` takes about ten.
bench-cache *ARGS:
    cargo bench --locked --bench cache -- {{ARGS}}

# Writes the digests of the bases into images/bases.txt, as Docker Hub, or the registry URL, has them now.
pin-bases *URL:
    scripts/pin-bases {{URL}}

# Random bytes for what reads bytes of others, each target for so many seconds; wants cargo-fuzz and a nightly compiler.
# Without nightly: RUSTC_BOOTSTRAP=1 and the stable compiler, `cargo fuzz run` without `+nightly`.
# What it finds lies in fuzz/artifacts: mend it, and keep the input in fuzz/corpus, which the ordinary tests replay.
fuzz SECONDS="600" *TARGETS="front frames zip settings tokens control notify logs wire":
    #!/bin/sh
    set -eu
    for target in {{ TARGETS }}; do
        # New inputs go to a folder that is not committed; those that are, come second and are read only.
        mkdir -p "fuzz/target/corpus/$target"
        echo "== $target"
        SCCACHE_LOG=off cargo +nightly fuzz run --sanitizer none "$target" "fuzz/target/corpus/$target" "fuzz/corpus/$target" \
            -- -max_total_time={{ SECONDS }} -max_len=8192 -timeout=60 -print_final_stats=1
    done

# Circles of imports, the largest module and lines, at 35e6777 (before the layers) and now; see scripts/house for more.
house *ARGS:
    scripts/house {{ARGS}}

# What two people and a container share with `at` and without it, as a table; the container wants Docker.
shares:
    cargo nextest run --locked --no-capture -E 'test(/^at::checkouts/)'

# What small projects say when they are built by every lane, beside a build without a cache, as a table.
same:
    cargo nextest run --locked --no-capture -E 'test(/^same::/)'

# Which commands of the documents the tests run, which not, and why, as a table.
guides:
    cargo nextest run --locked --no-capture -E 'test(=guides::every_command_of_the_guides_is_run_or_says_why_not)'

# The table of runtimes and modes: Docker, Podman, Compose and systemd of today, in a machine of namespaces; wants root.
runtimes:
    cargo nextest run --locked --no-capture -E 'test(/^today::/)'

# The site of docs/ in target/site, by mdBook.
site:
    mdbook build docs

# The status page in every state, in light and dark, on a desk and a phone: pictures in target/tmp/screens, what each costs,
# and a new docs/status-page.png; wants Chromium.
screenshots:
    cargo nextest run --locked --no-capture -E 'test(/^screens::/)'
    cp target/tmp/screens/status-page.png docs/

# The moving picture of docs/start.md, from a real session; wants Docker and termtosvg of Python's index.
session:
    scripts/record-session docs/first-five-minutes.svg
