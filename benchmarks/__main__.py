"""`python -m benchmarks NAME [--json] [--ledger DIR]`: compare one system with its peers in one run."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.harness import print_rows, rows_to_json

SHARED = ("__init__", "__main__", "harness", "ledger", "attribution_cases")


def main(argv: list[str] | None = None) -> int:
    here = Path(__file__).parent
    names = sorted(p.stem for p in here.glob("*.py") if p.stem not in SHARED)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=names, help="which system to compare")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--repeats", type=int, default=3, help="best of this many runs (default 3)")
    parser.add_argument(
        "--threads", type=int, default=1, help="torch threads of ours and the peer (default 1)"
    )
    parser.add_argument("--cases", default="", help="comma-separated cases (default: all)")
    parser.add_argument(
        "--ledger", type=Path, help="also store the report row of this benchmark here, such as docs/ledger"
    )
    options = parser.parse_args(argv)
    module = importlib.import_module(f"benchmarks.{options.name}")
    if options.ledger is not None and not hasattr(module, "REPORT"):
        parser.error(f"no row of the ledger is measured by {options.name}")
    cases = tuple(c for c in options.cases.split(",") if c)
    rows = module.compare(repeats=options.repeats, threads=options.threads, cases=cases)
    print(rows_to_json(rows)) if options.json else getattr(module, "print_rows", print_rows)(rows)
    if options.ledger is not None:
        from benchmarks.ledger import store

        path = store(options.ledger, module.REPORT, rows, repeats=options.repeats, threads=options.threads)
        print(f"ledger: {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
