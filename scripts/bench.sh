#!/usr/bin/env bash
# One environment per peer, outside .venv: their dependencies would break ours.
set -uo pipefail
python=${1:-python3.11}
torch=$(grep '^torch==' constraints.txt)
mkdir -p .bench
while read -r name requirement; do
  [ -z "$name" ] && continue
  env=.bench/$name
  [ -e "$env/.ready" ] && { echo "Reusing $env"; continue; }
  echo "Building $env for $requirement ..."
  if "$python" -m venv "$env" \
    && "$env/bin/python" -m pip install -q "$torch" \
    && "$env/bin/python" -m pip install -q -c constraints.txt "$requirement" transformers; then
    # The index's torchvision and torchaudio do not match a CPU-only torch and break `import transformers`.
    "$env/bin/python" -m pip uninstall -q -y torchvision torchaudio >/dev/null 2>&1
    touch "$env/.ready"
  else
    echo "Could not install $requirement; its rows will say so." >&2
    rm -rf "$env"
  fi
done < benchmarks/peers.txt
