#!/usr/bin/env bash
# Writes descriptors.bin for Envoy's JSON transcoder: the services, and the details that errors carry, without which
# Envoy answers an error with an empty body. Needs Python with grpcio-tools and googleapis-common-protos, in the versions
# of tests/deployment/requirements.txt.
#
# usage: deploy/mesh/envoy/make-descriptors.sh [OUT]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
google=$(python3 -c 'import google.rpc, pathlib; print(pathlib.Path(list(google.rpc.__path__)[0]).parents[1])')
cd "$root/proto"
python3 -m grpc_tools.protoc --proto_path=. --proto_path="$google" --include_imports \
    --descriptor_set_out="${1:-$here/descriptors.bin}" baichuan/v1/*.proto google/rpc/error_details.proto google/rpc/status.proto
