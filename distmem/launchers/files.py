"""The files in launch/: the commands of this package for people who start the workers themselves."""

from __future__ import annotations

from distmem.launchers import Command, local_command, torchrun_command

# words of a command that the shell fills in; none of them has a character that would be quoted
_SHELL = {
    "@PYTHON@": '"${PYTHON:-python}"',
    "@RECIPE@": '"${RECIPE:?a recipe, such as recipes/digits.yaml}" "$@"',
    "@PROCS@": '"${PROCS:?processes of this node, such as 2}"',
    "@RESTARTS@": '"${RESTARTS:-0}"',
    "@THREADS@": "$(((THREADS = $(getconf _NPROCESSORS_ONLN) / ${PROCS:-1}) > 0 ? THREADS : 1))",
}


def render_launch_files() -> dict[str, str]:
    """Text of each file in launch/ by its name: what `distmem run --dry-run` prints, with shell variables."""
    return {
        "local.sh": _text(
            local_command("@PYTHON@", ["@RECIPE@"]),
            "RECIPE=recipes/digits.yaml launch/local.sh [key=value ...] [--out DIR]",
            "one process",
        ),
        "torchrun.sh": _text(
            torchrun_command("@PYTHON@", ["@RECIPE@"], "@PROCS@", "@RESTARTS@", "@THREADS@"),
            "RECIPE=recipes/digits.yaml PROCS=2 launch/torchrun.sh [key=value ...] [--out DIR]",
            "PROCS processes of one node; RESTARTS: how often a failed rank may be restarted",
        ),
    }


def _text(command: Command, usage: str, what: str) -> str:
    body = "\n".join(command.shell_lines())
    for word, shell in _SHELL.items():
        body = body.replace(word, shell)
    return f"#!/usr/bin/env bash\n# {usage}\n# {what}\n{body}\n"
