#!/usr/bin/env bash
# Audit the embedded organism, then its clean twin as the control. Exits 0 when both reports were written.
set -uo pipefail
bin=$1 report=$2
written=0
for subject in resident resident-twin; do
  out=$report
  [ "$subject" = resident ] || out=$report/twin
  echo "Auditing organism://$subject ..."
  "$bin/glasshouse" audit "organism://$subject" --out "$out"
  code=$?
  echo "The audit of $subject ended with exit code $code (0: nothing found, 1: findings, 2: could not run)."
  [ -s "$out/report.html" ] && [ "$code" -le 1 ] && written=$((written + 1))
done
[ "$written" -eq 2 ] && echo "Open $report/report.html"
[ "$written" -eq 2 ]
