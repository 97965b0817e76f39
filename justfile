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
