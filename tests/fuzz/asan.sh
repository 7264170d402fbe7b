#!/bin/sh
# Run the tests of the kernels under AddressSanitizer and UBSan; arguments go to pytest.
set -eu
cd "$(dirname "$0")/../.."
# test_merge_memory.py is about limits of the address space, which cannot be here. With
# pytest's usual capture the sanitizers' reports would be lost.
exec .venv/bin/python tests/fuzz/sanitized.py pytest --capture=sys \
    tests/merger/test_merge*.py tests/worker/test_pcap*.py tests/worker/test_ring_kernel*.py \
    --deselect=tests/merger/test_merge_memory.py "$@"
