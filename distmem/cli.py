"""The command line: verbs only. Each parses, calls one function and prints."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from distmem import __version__
from distmem.errors import DistmemError, UsageError

app = typer.Typer(
    name="distmem",
    help="Train with too little memory: one recipe says the model, the data and the memory strategy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(help="a recipe file, or the name of a shipped one", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="train.epochs=3 after.0.prune.sensitivity=1.5 ...", metavar="key=value"),
]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if version:
        print(f"distmem {__version__}")
        raise typer.Exit


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="show this one")] = None,
    as_json: Json = False,
) -> None:
    """List the shipped recipes, or show one."""
    from distmem.shipped import find_recipe, header, shipped_recipes

    if name is not None:
        print(find_recipe(name).read_text(), end="")
        return
    found = {name: header(file) for name, file in shipped_recipes().items()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, lines in found.items():
        print(f"{name:<{max(map(len, found))}}  {(lines or [''])[-1]}")
    print("\ndistmem new NAME copies one to the current folder; distmem run NAME [key=value ...] runs it")


@app.command()
def new(
    name: RecipeName,
    file: Annotated[Path | None, typer.Argument(help="where to; default: NAME.yaml")] = None,
) -> None:
    """Copy a shipped recipe to a file of your own."""
    from distmem.shipped import find_recipe

    source = find_recipe(name)
    target = file or Path(source.name)
    try:
        with target.open("x", encoding="utf-8") as out:  # never over a file that is there
            out.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise UsageError(f"{target} exists", remedy="name another file: distmem new NAME FILE") from error
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror}") from error
    print(f"{target} written; check it with: distmem check {target}")


@app.command()
def check(
    recipe: Annotated[str | None, typer.Argument(help="a recipe file, or the name of a shipped one")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="print the JSON Schema of recipes, for editors")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="print the full recipe, defaults included")] = False,
) -> None:
    """Validate a recipe without running anything."""
    from distmem.recipe import dump_recipe, json_schema

    if schema:
        print(json_schema())
        return
    if recipe is None:
        raise UsageError("which recipe?", remedy="distmem check RECIPE")
    checked = _checked(recipe, overrides)
    if resolved:
        print(dump_recipe(checked), end="")
        return
    launch = checked.launch
    print(
        f"{recipe}: fine. {checked.model.name} on {checked.data.name}, {launch.procs_per_node} x {launch.device}, "
        f"{checked.train.precision}, backend {launch.backend}, launcher {launch.launcher}"
    )


@app.command()
def run(
    recipe: RecipeName,
    overrides: Overrides = None,
    launcher: Annotated[str | None, typer.Option(help="local, torchrun")] = None,
    procs: Annotated[int | None, typer.Option(help="processes per node")] = None,
    nodes: Annotated[int | None, typer.Option(help="nodes")] = None,
    backend: Annotated[str | None, typer.Option(help="ddp")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; goes on with the run that is in it")] = None,
    resume: Annotated[str | None, typer.Option(help="auto, never, or a checkpoint folder to start from")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print command, environment and recipe; start nothing")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="one process, a few batches, anomaly detection, full tracebacks")
    ] = False,
) -> None:
    """Train, run the stages after training, and write the report."""
    from distmem.hardware import usable_cores
    from distmem.launchers import build_command, worker_arguments
    from distmem.launchers.start import start
    from distmem.recipe import dump_recipe
    from distmem.runs import choose_folder, unfinished_like, write_launch_files

    options = {"launcher": launcher, "procs_per_node": procs, "nodes": nodes, "backend": backend}
    if debug:
        options |= {"launcher": "local", "procs_per_node": 1}
    extra = [f"launch.{key}={value}" for key, value in options.items() if value is not None]
    checked = _checked(recipe, [*(overrides or []), *extra])
    if out is None and resume is None and not debug and (old := unfinished_like(checked)):
        print(f"an unfinished run of this recipe is in {old}; `--resume auto` goes on with it", file=sys.stderr)
    folder, start_from = choose_folder(checked, out, resume, make=not dry_run)
    command = build_command(
        checked, worker_arguments(folder / "recipe.yaml", folder, start_from, debug), usable_cores()
    )
    script = command.script(Path.cwd(), os.environ.get("PYTHONPATH"))
    if dry_run:
        print(f"# {folder}/launch.sh\n{script}\n# {folder}/recipe.yaml\n{dump_recipe(checked)}", end="")
        return
    write_launch_files(folder, checked, script)
    start(command.managed(), folder)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="the HTML file to write")] = None,
) -> None:
    """Write the report of a run, or of several side by side."""
    from distmem.report import write_report

    print(write_report(runs, out))


def _checked(recipe: str, overrides: list[str] | None):
    from distmem.checks import check as check_recipe
    from distmem.recipe import load_recipe
    from distmem.shipped import find_recipe

    return check_recipe(load_recipe(find_recipe(recipe), overrides))


def main() -> None:
    """Entry point: errors become messages and exit codes; --debug shows the traceback."""
    try:
        app()
    except DistmemError as error:
        if "--debug" in sys.argv and hasattr(error, "traceback"):
            print(error.traceback, file=sys.stderr)
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
