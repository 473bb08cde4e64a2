# Shortcuts for `just` (https://just.systems): each line is a command that works without it as well. CONTRIBUTING.md
# says when which one is of use.

# The list of recipes.
default:
    @just --list

# What every commit passes: formatting, lints, and what holds the documents against the code.
check:
    cargo fmt --check && cargo clippy --all-targets -- -D warnings && cargo test --test walls

# Every test on every engine; `just test --lib backends::log` for a part. Installs and starts what is missing.
test *ARGS:
    scripts/test {{ARGS}}

# `just engines install redis`, `start`, `stop`, `status`, `list`: see docs/engines.md.
engines *ARGS:
    scripts/engines {{ARGS}}

# `just bench`, or one of them: `just bench --bench hot_paths`.
bench *ARGS:
    cargo bench {{ARGS}}

# Formats the sources.
fmt:
    cargo fmt

# The documentation of the library, held to the same as in CI.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
