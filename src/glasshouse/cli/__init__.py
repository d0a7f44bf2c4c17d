"""The command line: parse, call, print. One file per command group, each with `register(app)`.

Exit codes: 0 nothing to report, 1 findings (or a failing claim), 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

import typer

from glasshouse import __version__
from glasshouse.runtime.errors import EXIT_CODE, GlasshouseError

COMMAND_GROUPS = (
    "audit", "game", "report", "findings", "trace", "mislabeled", "curate", "lens", "eval", "grow",
    "study", "ledger", "listing", "society", "doctor", "cache", "card", "challenges",
)  # fmt: skip

MACHINE_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM})

HELP = """
A workbench for alignment science: what does a model do, which data made it so, and how sure are we?

\b
Examples:
  glasshouse audit                     audit the flawed model we ship
  glasshouse audit ./model             audit yours
  glasshouse audit ./model --train-data rows.jsonl   and trace what it finds
  glasshouse audit ./model --dry-run   what would run, what not, the cost
  glasshouse list                      checks, organisms, studies
  glasshouse doctor                    is this machine ready?

Exit codes: 0 nothing found, 1 findings, 2 could not run.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors of the family become one sentence on stderr and exit code 2."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit code of `glasshouse ARGUMENTS`; never raises."""
    command = typer.main.get_command(build())
    try:
        code = command.main(args=arguments, prog_name="glasshouse", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except GlasshouseError as error:
        return complain(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return complain("Interrupted; the same command resumes where it stopped.", 130)
    except typer.Exit as stop:
        return stop.exit_code
    except OSError as error:
        return _refused(error) if error.errno in MACHINE_REFUSES else _unexpected(error)
    except Exception as error:
        return _unexpected(error)


def build() -> typer.Typer:
    """The application with every command group that is installed."""
    app = typer.Typer(
        name="glasshouse", no_args_is_help=True, rich_markup_mode="rich", add_completion=False,
        pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(help=HELP)(_top)
    for group in COMMAND_GROUPS:
        if find_spec(f"glasshouse.cli.{group}") is not None:
            importlib.import_module(f"glasshouse.cli.{group}").register(app)
    return app


def complain(message: str, code: int = EXIT_CODE) -> int:
    """Print one message to stderr, its control characters made visible, and return `code`."""
    from glasshouse.runtime.text import clean_text

    print(clean_text(message), file=sys.stderr)
    return code


def _version(asked: bool) -> None:
    if asked:
        print(f"glasshouse {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Nothing happens above the commands; the help text is the application's."""


def _refused(error: OSError) -> int:
    """The machine's own no (disk full, no permission) is not a bug; the stored steps are kept."""
    where = f"{error.filename}: " if error.filename else ""
    return complain(
        f"{where}{error.strerror}; make room or give another place, and run the same command again."
    )


def _unexpected(error: Exception) -> int:
    """A usage error of the parser says itself; anything else is a bug, and must not exit 1 ('findings')."""
    show = getattr(error, "show", None)
    if callable(show):
        show()
        return int(getattr(error, "exit_code", EXIT_CODE))
    traceback.print_exception(error)
    return complain(
        f"Glasshouse stopped on an unexpected {type(error).__name__}; this is a bug, please report it."
    )
