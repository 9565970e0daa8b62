"""`imgclf schema`: what a config file may hold, for editors."""

from __future__ import annotations

from imgclf.cli import _console as console
from imgclf.core.config import ExperimentConfig
from imgclf.core.options import json_schema
from imgclf.transforms.presets import PRESETS

SOURCE = {"type": "string", "description": "What to train on, unless the command line says it."}


def schema() -> None:
    """Print the JSON schema of config files, so that editors complete and check them.

    [dim]imgclf schema > imgclf.schema.json[/dim]
    """
    draft = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Config of imgclf train"}
    found = json_schema(ExperimentConfig, source=SOURCE)
    found["properties"]["augment"]["enum"] = PRESETS.names()
    console.show_json({**draft, **found})
