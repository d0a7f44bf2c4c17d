#!/usr/bin/env bash
# Create or reuse the virtual environment and install the project with pinned versions.
set -euo pipefail
: "${PYTHON:=python3.11}" "${VENV:=.venv}"

say() { printf '%s\n' "$*" >&2; }

need="glasshouse needs Python 3.11 or newer"
if ! command -v "$PYTHON" >/dev/null; then
  say "$need: there is no '$PYTHON' here; install it, or run 'make PYTHON=/path/to/python3.11'."
  exit 2
fi
# What is not a Python at all prints something else than a version, or nothing.
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
if ! [[ "$version" =~ ^[0-9]+\.[0-9]+$ ]]; then
  say "$need: '$PYTHON' does not run as a Python; run 'make PYTHON=/path/to/python3.11'."
  exit 2
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "$need: '$PYTHON' is Python $version; run 'make PYTHON=/path/to/python3.11'."
  exit 2
fi

if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
  say "Reusing the environment $VENV."
else
  say "Creating the environment $VENV ..."
  if "$PYTHON" -c 'import ensurepip' 2>/dev/null; then
    "$PYTHON" -m venv "$VENV"
  elif "$PYTHON" -m virtualenv --version >/dev/null 2>&1; then
    say "This Python has no ensurepip; using virtualenv instead."
    "$PYTHON" -m virtualenv -q "$VENV"
  elif "$PYTHON" -m pip --version >/dev/null 2>&1; then
    # pip can install itself into an environment made without it.
    say "This Python has no ensurepip; installing pip into $VENV with the pip outside."
    if ! "$PYTHON" -m venv --without-pip "$VENV" 2>/dev/null; then
      say "'$PYTHON' cannot make environments: install the package python3-venv (Debian, Ubuntu) and run make again."
      exit 2
    fi
    "$PYTHON" -m pip --python "$VENV/bin/python" install -q pip
  else
    say "'$PYTHON' has neither ensurepip nor pip: install the package python3-venv (Debian, Ubuntu) or python3-pip and run make again."
    exit 2
  fi
fi

say "Installing glasshouse and its dependencies (the first time takes a few minutes) ..."
# torch first and pinned: an unpinned torch would pull several gigabytes of CUDA packages.
"$VENV/bin/python" -m pip install -q "$(grep '^torch==' constraints.txt)"
"$VENV/bin/python" -m pip install -q -c constraints.txt -e '.[dev]'
say "Installed: $("$VENV/bin/python" -c 'import importlib.metadata as m; print("glasshouse", m.version("glasshouse"), "with torch", m.version("torch"), "and transformers", m.version("transformers"))')"
