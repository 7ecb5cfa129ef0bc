#!/usr/bin/env bash
# Runs the public suite of TUF clients against ours: proto/tests/conformance.sh [FOLDER OF THE SUITE'S SOURCES]
# The suite is not on PyPI; its sources: https://github.com/theupdateframework/tuf-conformance
# Needs python3 with venv, and Debian's faketime for the suite's tests of expiry.
set -euo pipefail
cd "$(dirname "$0")/../.."
suite=${1:-$PWD/target/tuf-conformance}
if [ ! -d "$suite" ]; then
    git clone -q https://github.com/theupdateframework/tuf-conformance "$suite"
    git -C "$suite" checkout -q eec841c186f81f2d9d8d30460c7e7deefa615f9e
fi
venv=target/tuf-conformance-venv
[ -d "$venv" ] || { python3 -m venv "$venv" && "$venv/bin/pip" install -q "$suite"; }
cargo build -q --workspace --locked --example tuf_client --features proto/conformance
# What we leave out on purpose: delegations (their targets do not exist here).
cp proto/tests/conformance.xfails target/debug/examples/tuf_client.xfails
exec "$venv/bin/pytest" -q "$suite/tuf_conformance" --entrypoint "$PWD/target/debug/examples/tuf_client" "${@:2}"
