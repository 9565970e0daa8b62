"""The tables of options in docs/cli.md, made from the command line; run as a script it writes them."""

import re
from pathlib import Path

import typer

from imgclf.cli import app
from imgclf.cli._options import FIELDS
from imgclf.core.config import OUTPUT, PANELS

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
TABLES = re.compile(r"(?<=<!-- options of train -->\n).*?(?=<!-- end of options -->)", re.S)
DEFAULT = re.compile(r" \[dim\]\\?\[default: (.+?)\]\[/dim\]")


def row(param):
    """An option as a row of a table: its names, what it is, the numbers that are allowed, its default."""
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    default = DEFAULT.search(param.help)
    allowed = FIELDS[param.name].option.allowed if param.name in FIELDS else ""
    bounds = allowed if re.match(r"\d|above", allowed) else ""
    return f"| {names} | {DEFAULT.sub('', param.help).rstrip('.')} | {bounds} | {default[1] if default else ''} |"


def tables():
    """The options of `imgclf train`, a table for each panel of its help."""
    params = typer.main.get_command(app).commands["train"].params
    options = [param for param in params if param.param_type_name == "option"]
    parts = []
    for panel in PANELS:
        rows = [row(param) for param in options if (param.rich_help_panel or OUTPUT) == panel]
        parts += [f"\n### {panel}\n", "| option | | allowed | default |\n|---|---|---|---|", *rows]
    return "\n".join(parts) + "\n\n"


def page():
    """docs/cli.md with the tables as they have to be."""
    return TABLES.sub(lambda _: tables(), PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
