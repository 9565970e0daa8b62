"""The images that a run was made of, found again."""

from __future__ import annotations

import os
from typing import Any

from imgclf.core.config import DataConfig, ExperimentConfig, from_dict
from imgclf.core.errors import NotFitted
from imgclf.data.dataset import Source
from imgclf.data.sources.named import NAMED, open_named
from imgclf.data.sources.open import open_source
from imgclf.storage.run_folder import Run, run_config, run_source


def reading_options(config: DataConfig) -> dict[str, Any]:
    """The keyword arguments of `open_source`."""
    return {"data_dir": config.data_dir, "max_pixels": config.max_pixels}


def labeled_source(data: str | os.PathLike[str] | Source | None, run: Run | None) -> Source:
    """The images to evaluate on: `data` or, without them, those that a run was trained on."""
    if data is not None:
        return open_source(data, strict=False)
    if run is not None:
        values, named = run_config(run)
        if named is not None:
            return source_of_run(run, named, from_dict(ExperimentConfig, values).data)
    raise NotFitted("this model file does not record its data: name the labeled images to evaluate on")


def source_of_run(run: Run, named: str, config: DataConfig) -> Source:
    """The images that a run was made of, whatever lies in the present working folder; its split says who is where."""
    if run.info.location is None and named in NAMED:
        return open_named(named, config.data_dir)
    return open_source(run_source(run, named), strict=False, **reading_options(config))
