#!/usr/bin/env bash
# Servers and SMG before them on this machine, on loopback alone; Ctrl-C ends all.
#
# usage: deploy/smg/up.sh [SMG_FLAG]...
# Environment:
#   REPLICAS  servers (2)                        SERVER  the program (target/release/baichuan-server)
#   PORT      SMG's, for OpenAI clients (30000)  MODEL   the checkpoint (models/baichuan-m1-wordnet)
#   THREADS   compute threads of each server (physical cores / REPLICAS)
# Needs `cargo build-m1` once, Python 3.11 with venv, and its package index once for SMG (kept in target/smg-venv).
set -euo pipefail

SMG_VERSION=1.13.0
root=$(cd "$(dirname "$0")/../.." && pwd)
replicas=${REPLICAS:-2}
port=${PORT:-30000}
server=${SERVER:-$root/target/release/baichuan-server}
model=${MODEL:-$root/models/baichuan-m1-wordnet}
cores=$(lscpu --parse=CORE,SOCKET 2>/dev/null | grep -v '^#' | sort -u | wc -l) || cores=$(nproc)
threads=${THREADS:-$((cores / replicas > 0 ? cores / replicas : 1))}
venv=${SMG_VENV:-$root/target/smg-venv}

[ -x "$server" ] || { echo "$server is not there: cargo build-m1, or set SERVER" >&2; exit 1; }
if ! "$venv/bin/python" -c "import sys, importlib.metadata as m; sys.exit(m.version('smg') != '$SMG_VERSION')" 2>/dev/null; then
    echo "installing SMG $SMG_VERSION"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "smg==$SMG_VERSION"
fi

pids=()
finish() {
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
    wait
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

urls=()
for ((i = 1; i <= replicas; i++)); do
    "$server" serve --model "$model" --listen "127.0.0.1:$((port + i))" --admin-listen "127.0.0.1:$((port + 100 + i))" \
        --set grpc.vllm_facade=true --set "model.threads=$threads" --log-format text &
    pids+=($!)
    urls+=("grpc://127.0.0.1:$((port + i))")
done

# It takes each server up once its model is loaded, and asks how loaded they are every second.
HF_HUB_OFFLINE=1 "$venv/bin/smg" launch --host 127.0.0.1 --port "$port" \
    --prometheus-host 127.0.0.1 --prometheus-port "$((port + 100))" --worker-urls "${urls[@]}" \
    --policy power_of_two --load-monitor-interval 1 --worker-startup-check-interval 1 \
    --health-check-interval-secs 1 --health-failure-threshold 1 --log-level warn "$@" &
pids+=($!)

# Whichever ends first ends all. Ctrl-C reaches servers too: it ends with 130, or with a server's 0 where that was seen first.
wait -n && status=0 || status=$?
exit "$status"
