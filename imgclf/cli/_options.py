"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Answer with JSON on stdout.")]
Model = Annotated[
    str | None,
    typer.Option(help="A model file or a run folder; without it the newest run under ./runs.", show_default=False),
]
Precision = Annotated[str, typer.Option(help="Numbers to compute in: fp32, bf16 or auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
DataDir = Annotated[
    str | None,
    typer.Option(help="Where mnist, fashion-mnist and cifar10 lie, or are downloaded to.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)]
