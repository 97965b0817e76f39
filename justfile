# Everything that needs no test to run.
check: fmt clippy shellcheck deny

fmt:
    cargo fmt --check

clippy:
    cargo clippy --locked --all-targets -- -D warnings

shellcheck:
    shellcheck scripts/* images/*.sh .ci/run

# Known vulnerabilities need the advisory database, which not every machine reaches.
deny:
    cargo deny --locked check --hide-inclusion-graph licenses bans sources
    if cargo deny --locked fetch db 2>/dev/null; then cargo deny --locked check advisories; else echo "advisories: not checked, the database cannot be reached"; fi

test:
    cargo test --locked --doc
    cargo nextest run --locked

# `run` beside s6, runit, tini, dumb-init, catatonit and supervisord, as far as they are installed; as root.
bench-supervisors *ARGUMENTS:
    cargo bench --locked --bench supervisors -- {{ARGUMENTS}}

# A thousand random events in ten minutes under a loop of real compiles; SOAK_SEED repeats a run.
soak $SOAK_EVENTS="1000" $SOAK_SECONDS="600":
    cargo nextest run --locked --no-capture -E 'test(/^soak::/)'

# Are the tests of the pure machines sharp? Changes their code in every way that cargo-mutants knows; takes an hour.
mutants *ARGS:
    cargo mutants --file src/supervise/machine.rs --file src/supervise/machine/history.rs --timeout 60 {{ARGS}} -- --locked --lib supervise::machine
    cargo mutants --file src/gateway/lru.rs --file src/gateway/lru/rules.rs --timeout 120 {{ARGS}} -- --locked --lib gateway::lru
    cargo mutants --file src/gateway/ghosts.rs --timeout 120 {{ARGS}} -- --locked --lib gateway::ghosts

# The log path of PID 1 beside s6-log, supervisord and a bare multiplexer in C.
bench-logs *arguments:
    cargo bench --locked --bench logs -- {{ arguments }}

# Jobs through the scheduler's front beside stock sccache-dist, in about two minutes; wants root and bubblewrap.
bench-front:
    cargo bench --locked --bench front

# The cache beside nginx, Redis and sccache's own server, in a minute; `--full` takes about ten.
bench-cache *ARGS:
    cargo bench --locked --bench cache -- {{ARGS}}
