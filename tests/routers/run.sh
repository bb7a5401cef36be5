#!/usr/bin/env bash
# A real SMG before two real servers, driven by the OpenAI client.
#
# usage: tests/routers/run.sh SERVER_BINARY CHECKPOINT_DIR [PYTEST_ARGUMENT]...
# Needs Python 3.11 or later with venv, and the Python package index once; keeps its environment in
# $BAICHUAN_ROUTERS_VENV (default: target/routers-venv).
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,6p' "$0" >&2
    exit 2
fi
server=$(realpath "$1")
checkpoint=$(realpath "$2")
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${BAICHUAN_ROUTERS_VENV:-$root/target/routers-venv}

if ! "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check \
    --requirement "$here/requirements.txt" --requirement "$root/tests/python/requirements.txt"

stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
"$venv/bin/python" -m grpc_tools.protoc --proto_path="$root/proto" \
    --python_out="$stubs" --grpc_python_out="$stubs" "$root"/proto/baichuan/v1/*.proto

cd "$here"
PATH="$venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$stubs:$here:$root/tests/python" \
    BAICHUAN_SERVER_BINARY="$server" BAICHUAN_CHECKPOINT="$checkpoint" \
    "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
