#!/bin/sh
# Engines on the GPU of a Mac: checks every step against the CPU, then times prefill and decode. Needs the `bessemer` binary and engines
# compiled with `--target cpu --target metal`, nothing else: no Rust, no network. See README.md beside this file.
#
#   sh run.sh BESSEMER OUT ENGINE...        writes OUT/result.json and OUT/table.md
#
# DEVICE=cpu runs the same on the CPU, which tests this script; PROMPT, TOKENS and ROUNDS change what is timed.
set -eu

if [ $# -lt 3 ]; then
    echo "usage: sh run.sh BESSEMER OUT ENGINE..." >&2
    exit 2
fi
bessemer=$1
out=$2
shift 2
device=${DEVICE:-metal}
prompt=${PROMPT:-512}
tokens=${TOKENS:-128}
rounds=${ROUNDS:-5}

mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# What the machine is, and how fast its GPU copies: no kernel that reads its weights once can be faster.
"$bessemer" doctor --json > "$scratch/machine.json"

# An engine's name as a JSON string.
quoted() {
    printf '"'
    basename "$1" | tr -d '\n' | sed 's/[\\"]/\\&/g'
    printf '"'
}

failed=0
{
    printf '{"date": "%s", "system": "%s", "device": "%s",\n' "$(date -u +%Y-%m-%d)" "$(uname -srm)" "$device"
    printf ' "machine": '
    cat "$scratch/machine.json"
    printf ', "engines": ['
} > "$out/result.json"
{
    printf '# %s on %s, %s\n\n' "$device" "$(uname -srm)" "$(date -u +%Y-%m-%d)"
    "$bessemer" doctor | grep -E '^(bessemer|metal)' || true
} > "$out/table.md"

separator=''
for engine in "$@"; do
    echo "$(basename "$engine"): checking every step against the CPU" >&2
    status=0
    "$bessemer" verify "$engine" --device "$device" --trust --json > "$scratch/verify.json" || status=$?
    test -s "$scratch/verify.json" || echo null > "$scratch/verify.json"
    if [ "$status" -ne 0 ]; then
        failed=1
        verdict="FAILED with exit code $status"
    else
        verdict='every step agrees with the CPU'
    fi
    echo "$(basename "$engine"): $verdict; timing" >&2
    printf '\n## %s: %s\n' "$(basename "$engine")" "$verdict" >> "$out/table.md"
    {
        printf '%s\n  {"engine": ' "$separator"
        quoted "$engine"
        printf ', "verify_exit": %s, "verify": ' "$status"
        cat "$scratch/verify.json"
    } >> "$out/result.json"
    # The CPU is the other subject: the same file, the same weights.
    for where in "$device" cpu; do
        bench() {
            "$bessemer" bench "$engine" --trust --device "$where" -p "$prompt" -n "$tokens" -r "$rounds" -o "$1"
        }
        if bench json > "$scratch/bench.json" 2> "$scratch/bench.err" && bench md > "$scratch/bench.md" 2>> "$scratch/bench.err"; then
            printf '\nOn %s:\n\n' "$where" >> "$out/table.md"
            cat "$scratch/bench.md" >> "$out/table.md"
        else
            failed=1
            echo null > "$scratch/bench.json"
            printf '\nOn %s: FAILED: %s\n' "$where" "$(tail -1 "$scratch/bench.err")" >> "$out/table.md"
        fi
        if [ "$where" = "$device" ]; then key=bench; else key=bench_cpu; fi
        printf ', "%s": ' "$key" >> "$out/result.json"
        cat "$scratch/bench.json" >> "$out/result.json"
        if [ "$device" = cpu ]; then break; fi
    done
    printf '}' >> "$out/result.json"
    separator=','
done
printf '\n]}\n' >> "$out/result.json"

cat "$out/table.md"
if [ "$failed" -ne 0 ]; then
    echo "something failed: see $out/result.json" >&2
    exit 1
fi
