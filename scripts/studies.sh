#!/usr/bin/env bash
# Run every study of the laptop configuration, two at a time, resumable; claims go to docs/ledger/.
# Usage: studies.sh BIN [SLUG...]; without slugs, every study that is installed.
set -uo pipefail
bin=$1
shift
export OMP_NUM_THREADS=1 GLASSHOUSE_BIN=$bin
[ $# -gt 0 ] || mapfile -t slugs < <("$bin/python" -c 'from glasshouse.studies import available; print(*available(), sep="\n")')
[ $# -eq 0 ] || slugs=("$@")
[ ${#slugs[@]} -gt 0 ] || { echo "No study is installed." >&2; exit 2; }

one() { # every line is marked with the study that wrote it, since two run at once
  set -o pipefail
  "$GLASSHOUSE_BIN/glasshouse" study "$1" --config laptop --ledger docs/ledger 2>&1 | sed -u "s/^/[$1] /"
}
export -f one
# The exit code is 123 when any study failed; the others still ran.
printf '%s\n' "${slugs[@]}" | xargs -P 2 -I{} bash -c 'one {}'
