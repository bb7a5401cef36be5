#!/usr/bin/env bash
# Fuzzes what strangers and operators feed the server: replays the corpus, then looks for more with libFuzzer.
#
# usage: tests/fuzz/run.sh SURFACE SECONDS     a surface of: config http2 protobuf safetensors sentencepiece template
#                                              tokenizer, or all of them one after another; each for so long,
#                                              0: replays the corpus only
#
# Needs the toolchain of this repository and a C++ compiler, no nightly and no cargo-fuzz. FUZZ_PROFILE=release builds
# for long runs, FUZZ_JOBS=N fuzzes so many surfaces at once, FUZZ_SEED=N begins with the same chances each time. New inputs go to $FUZZ_FOUND/SURFACE (target/fuzz/found),
# findings to $FUZZ_FOUND/findings/SURFACE-*; to look into one: SURFACE=… target/fuzz/…/fuzz FILE.
set -euo pipefail

surfaces=(config http2 protobuf safetensors sentencepiece template tokenizer)
if [ $# -ne 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
[ "$1" = all ] || surfaces=("$1")
seconds=$2

here=$(realpath "$(dirname "$0")")
target=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../target}")/fuzz
profile=${FUZZ_PROFILE:-dev}
found=${FUZZ_FOUND:-$target/found}

# Counters on every edge, and the operands of comparisons. For the target alone: procedural macros run in the compiler.
host=$(rustc -vV | sed -n 's/^host: //p')
flags=(-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1)
RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$target cargo build --quiet --manifest-path "$here/Cargo.toml" \
    --target "$host" --profile "$profile"
program=$target/$host/${profile/dev/debug}/fuzz

fuzz() {
    local surface=$1 log=$found/$1.log
    local limit=-max_total_time=$seconds
    [ "$seconds" != 0 ] || limit=-runs=0
    mkdir -p "$found/$surface" "$found/findings"
    if SURFACE=$surface "$program" "$found/$surface" "$here/corpus/$surface" \
        "$limit" -max_len=16384 -timeout=20 -rss_limit_mb=2048 ${FUZZ_SEED:+"-seed=$FUZZ_SEED"} \
        -artifact_prefix="$found/findings/$surface-" -print_final_stats=1 >"$log" 2>&1; then
        echo "$surface: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs," \
            "$(grep -c . <(ls "$here/corpus/$surface")) in the corpus," \
            "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1) edges, no finding"
    else
        tail -n 40 "$log"
        echo "$surface: a finding, in $found/findings; the whole log is $log"
        return 1
    fi
}

status=0
for surface in "${surfaces[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "${FUZZ_JOBS:-1}" ]; do wait -n || status=1; done
    fuzz "$surface" &
done
while [ -n "$(jobs -p)" ]; do wait -n || status=1; done
exit "$status"
