#!/bin/sh
# Fuzz the kernels under AddressSanitizer and UBSan, SECONDS in all: fuzz.sh [SECONDS].
set -eu
cd "$(dirname "$0")/../.."
set -- "${1:-60}" tests/fuzz/fuzz_*.py
seconds=$1
shift
each=$((seconds / $#))
for fuzzer; do
    .venv/bin/python tests/fuzz/sanitized.py python "$fuzzer" --seconds "$each"
done
