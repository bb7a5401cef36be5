#!/usr/bin/env bash
# Checks the files of deploy/ with the programs they are for, and balances and scrapes real servers.
#
# usage: tests/deployment/run.sh SERVER_BINARY CHECKPOINT_DIR [MODULE]...
# MODULE: test_images test_chart test_rules test_unit test_sizing test_balancers test_envoy test_dashboards; without any, all.
# Needs nginx, haproxy, prometheus (with promtool) and systemd-analyze on the path, Python 3.11 with venv, and the
# Python package index once; keeps its environment in $BAICHUAN_DEPLOYMENT_VENV (default: target/deployment-venv).
set -euo pipefail

if [ $# -lt 2 ]; then
    sed -n '2,7p' "$0" >&2
    exit 2
fi
server=$(realpath "$1")
checkpoint=$(realpath "$2")
shift 2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${BAICHUAN_DEPLOYMENT_VENV:-$root/target/deployment-venv}

if ! "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    rm -rf "$venv"
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt"

stubs=$(mktemp -d)
trap 'rm -rf "$stubs"' EXIT
"$venv/bin/python" -m grpc_tools.protoc --proto_path="$root/proto" \
    --python_out="$stubs" --grpc_python_out="$stubs" "$root"/proto/baichuan/v1/*.proto

modules=("$@")
[ ${#modules[@]} -gt 0 ] ||
    modules=(test_images test_chart test_rules test_unit test_sizing test_balancers test_envoy test_dashboards)
cd "$here"
# nginx, haproxy and systemd-analyze live in sbin or are Debian's.
PATH="$venv/bin:$PATH:/usr/sbin:/sbin" PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH="$stubs:$here:$root/tests/observability:$root/tests/python" \
    BAICHUAN_SERVER_BINARY="$server" BAICHUAN_CHECKPOINT="$checkpoint" \
    "$venv/bin/python" -m unittest --verbose "${modules[@]}"
