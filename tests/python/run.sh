#!/usr/bin/env bash
# Runs the Python clients against the real binary: stubs are generated from the checked-in /proto.
#
# usage: tests/python/run.sh SERVER_BINARY CHECKPOINT_DIR
# Needs Python 3.11 or later with venv, and the Python package index once; keeps its environment in
# $BAICHUAN_TEST_VENV (default: target/python-venv).
set -euo pipefail

if [ $# -ne 2 ]; then
    sed -n '2,6p' "$0" >&2
    exit 2
fi
server=$(realpath "$1")
checkpoint=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${BAICHUAN_TEST_VENV:-$root/target/python-venv}

if ! "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"

stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
"$venv/bin/python" -m grpc_tools.protoc --proto_path="$root/proto" \
    --python_out="$stubs" --grpc_python_out="$stubs" "$root"/proto/baichuan/v1/*.proto

cd "$here"
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$stubs:$here" \
    BAICHUAN_SERVER_BINARY="$server" BAICHUAN_CHECKPOINT="$checkpoint" \
    "$venv/bin/python" -m unittest --verbose test_inference test_operations test_reflection
