"""`glasshouse society`: markets around AI models, solved, swept and reported from a scenario file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.society._door import Door
    from glasshouse.society._scenario import Scenario

DEFAULT_OUT = "glasshouse-society"
SYSTEMS = {
    "entry": "How much data does a newcomer need against an incumbent held to a stricter safety limit?",
    "competition": "When the representation that all providers share gets better, are users served better?",
    "content": "What content quality does a learning recommender induce, and which rule would induce more?",
}
FIELDS = {
    "entry": {"scenario": "tau_I: 0.98", "set": "rho=0.5", "over": "tau_E=0.99,1.0"},
    "competition": {"scenario": "providers: 3", "set": "providers=4", "over": "noise=0.1,0.3,1"},
    "content": {"scenario": "T: 60", "set": "eta=0.1", "over": "eta=0.05,0.1,0.2"},
}
CONFIG = typer.Option("--config", "-c", metavar="FILE", help="The scenario, YAML or JSON; default: ours.")
SET = typer.Option("--set", metavar="FIELD=VALUE", help="Change one field; repeatable.")
OVER = typer.Option("--over", metavar="FIELD=A,B,C", help="An axis of the sweep; repeatable.")
OUT = typer.Option("--out", "-o", metavar="DIR", help="Where results go.")
SEEDS = typer.Option("--seeds", min=1, max=1000, help="How many seeds.")
EXECUTOR = typer.Option(help="local, processes, processes:4, or one a plug-in registered.")
SCHEMA = typer.Option("--schema", help="Print the scenario's JSON Schema and stop.")

HELP = """
Stylised models of the market around AI models: solve one, sweep it, write a report.

\b
Examples:
  glasshouse society competition report          our scenario: one page, theory beside simulation
  glasshouse society competition run --set providers=4
  glasshouse society entry sweep --config market.yaml --seeds 5
  glasshouse society content run --schema        every field of a scenario

A scenario is a YAML or JSON file; fields that are absent have their defaults. A killed sweep goes on when
the same command is given again. Nothing here recommends a policy.
"""


def register(app: typer.Typer) -> None:
    """Add the group: one subgroup per system, three commands each."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=HELP)
    for name, question in SYSTEMS.items():
        system = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=question)
        system.command("run")(_run(name))
        system.command("sweep")(_sweep(name))
        system.command("report")(_report(name))
        group.add_typer(system, name=name)
    app.add_typer(group, name="society")


def _run(system: str) -> Callable[..., None]:
    def run(
        config: Annotated[str | None, CONFIG] = None,
        changes: Annotated[list[str] | None, SET] = None,
        out: Annotated[str, OUT] = DEFAULT_OUT,
        seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
        schema: Annotated[bool, SCHEMA] = False,
    ) -> None:
        if schema:
            return _print_schema(system)
        door, scenario = _scenario(system, config, changes)
        folder = _writable(out)
        solution = door.solve(scenario, seed)
        for line in solution.summary():
            _print(line)
        _save(folder / "solution", solution, scenario, seed)
        _print(f"Solution: {folder / 'solution'}")
        return None

    run.__doc__ = _told(system, "Solve one market and print the answer with its certificate.", "run")
    return run


def _sweep(system: str) -> Callable[..., None]:
    def sweep(
        config: Annotated[str | None, CONFIG] = None,
        changes: Annotated[list[str] | None, SET] = None,
        over: Annotated[list[str] | None, OVER] = None,
        seeds: Annotated[int, SEEDS] = 3,
        out: Annotated[str, OUT] = DEFAULT_OUT,
        executor: Annotated[str, EXECUTOR] = "local",
        schema: Annotated[bool, SCHEMA] = False,
    ) -> None:
        if schema:
            return _print_schema(system)
        from glasshouse.society._sweeps import sweep as run_sweep
        from glasshouse.society._sweeps import write_rows

        door, scenario = _scenario(system, config, changes)
        grid = _grid(over, scenario) or door.default_grid(scenario)
        folder = _writable(out)
        rows, run = run_sweep(
            door, scenario, grid, seeds=range(seeds), out=folder / "runs", executor=executor
        )
        path = write_rows(folder / "sweep.parquet", rows)
        _print_rows(rows, [*grid, door.value])
        _print(f"Sweep: {path} ({len(rows)} rows); run: {run}")
        return None

    sweep.__doc__ = _told(system, "Solve a grid of markets; a killed sweep resumes.", "sweep")
    return sweep


def _report(system: str) -> Callable[..., None]:
    def report(
        config: Annotated[str | None, CONFIG] = None,
        changes: Annotated[list[str] | None, SET] = None,
        seeds: Annotated[int, SEEDS] = 5,
        out: Annotated[str, OUT] = DEFAULT_OUT,
        executor: Annotated[str, EXECUTOR] = "local",
        schema: Annotated[bool, SCHEMA] = False,
    ) -> None:
        if schema:
            return _print_schema(system)
        from glasshouse.society._report import write_page
        from glasshouse.society._sweeps import sweep as run_sweep
        from glasshouse.society._sweeps import write_rows

        door, scenario = _scenario(system, config, changes)
        folder = _writable(out)
        rows: list[dict[str, Any]] = []
        for name, (changed, grid) in door.report_grids(scenario).items():
            found, _ = run_sweep(
                door, scenario.changed(changed), grid, seeds=range(seeds), out=folder / "runs",
                executor=executor,
            )  # fmt: skip
            rows += [{"sweep": name, **row} for row in found]
        write_rows(folder / "sweep.parquet", rows)
        page = door.page(scenario, rows, tuple(range(seeds)))
        path = write_page(folder / "report.html", page)
        _print(page.lead)
        for certificate in page.certificates:
            state = "met" if certificate.met else "NOT met"
            _print(f"{certificate.what}: largest gain {certificate.eps_nash:.1e}, {state}")
        _print(f"Report: {path}; all numbers: {folder / 'sweep.parquet'}")
        return None

    report.__doc__ = _told(system, "Write one page: theory and simulation on the same axes.", "report")
    return report


def _told(system: str, first: str, command: str) -> str:
    """The help of one command, with examples that work."""
    example = FIELDS[system]
    more = {
        "run": f"glasshouse society {system} run --set {example['set']}",
        "sweep": f"glasshouse society {system} sweep --over {example['over']} --seeds 5",
        "report": f"glasshouse society {system} report --set {example['set']} --executor processes:2",
    }[command]
    writes = {
        "run": "Writes solution/ (arrays and JSON) and the scenario that was solved.",
        "sweep": "Writes sweep.parquet, one row per grid point and seed. Without --over, the usual axis.",
        "report": "Writes report.html (offline, one file) and sweep.parquet with every number in it.",
    }[command]
    return (
        f"{first}\n\n\b\nExamples:\n  glasshouse society {system} {command}\n  {more}\n"
        f"  glasshouse society {system} {command} --config market.yaml    # {example['scenario']}\n\n{writes}"
    )


def _scenario(system: str, config: str | None, changes: Sequence[str] | None) -> tuple[Door, Scenario]:
    from glasshouse.society._door import open_door

    door = open_door(system)
    scenario = door.scenario.read(config) if config is not None else door.scenario()
    given = _assignments(changes, "--set")
    return door, scenario.changed(given, where="--set") if given else scenario


def _assignments(texts: Sequence[str] | None, option: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{text!r} says no value", where=option, fix="write FIELD=VALUE")
        found[name.strip()] = _value(value)
    return found


def _grid(texts: Sequence[str] | None, scenario: Scenario) -> dict[str, list[Any]]:
    """Axes of the sweep: values are separated by commas; a JSON list is taken as it is."""
    grid: dict[str, list[Any]] = {}
    for text in texts or ():
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or name not in type(scenario).model_fields:
            known = ", ".join(type(scenario).model_fields)
            raise InputError(
                f"{text!r} names no field", where="--over", fix=f"write FIELD=A,B with one of: {known}"
            )
        listed = _value(values)
        grid[name] = (
            listed if isinstance(listed, list) else [_value(v) for v in values.split(",") if v.strip()]
        )
    return grid


def _value(text: str) -> Any:
    """A number, true, false, null or list as in JSON; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _print_schema(system: str) -> None:
    from glasshouse.society._door import open_door

    print(json.dumps(open_door(system).scenario.model_json_schema(), indent=2))


def _save(folder: Path, solution: Any, scenario: Scenario, seed: int) -> None:
    from glasshouse import __version__
    from glasshouse.runtime import files

    solution.save(folder)
    told: Mapping[str, Any] = {"scenario": scenario.to_json(), "seed": seed, "glasshouse": __version__}
    files.write_json(folder / "scenario.json", told)


def _writable(out: str) -> Path:
    from glasshouse.audit.outputs import check_writable

    folder = Path(out).expanduser()
    check_writable(folder)
    return folder


def _print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """The first rows, the columns that were swept and the answer."""
    shown = [c for c in dict.fromkeys([*columns, "seed", "eps_nash", "converged"]) if c in rows[0]]
    _print("  ".join(f"{name:>14.14}" for name in shown))
    for row in rows[:20]:
        _print("  ".join(f"{_cell(row[name]):>14.14}" for name in shown))
    if len(rows) > 20:
        _print(f"... {len(rows) - 20} more rows")


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _print(text: str) -> None:
    from glasshouse.runtime.text import clean_text

    print(clean_text(text))
