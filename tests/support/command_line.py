"""Commands, run in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from imgclf.cli import app


def run(*args: object, stdin: str | None = None) -> Result:
    """How `imgclf ARGS` ends."""
    return CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)


def done(*args: object, stdin: str | None = None) -> Result:
    """The same for a command that must end well."""
    result = run(*args, stdin=stdin)
    assert result.exit_code == 0, result.stderr
    return result


def answer(*args: object, stdin: str | None = None) -> Any:
    """The one JSON value of a command that must end well; nothing else may be on stdout."""
    (line,) = done(*args, "--json", stdin=stdin).stdout.splitlines()
    return json.loads(line)
