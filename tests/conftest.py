"""Which tests are collected, and where they run; what they share is in `support/fixtures.py`."""

import gc
from pathlib import Path

import pytest

gc.set_threshold(100_000, 20, 20)  # as in a command


@pytest.hookimpl(trylast=True)  # when the coverage is measured
def pytest_sessionstart(session: pytest.Session) -> None:
    """The process that hands out tests to others runs none: it imports no torch."""
    if session.config.getoption("dist", "no") == "no":
        session.config.pluginmanager.import_plugin("support.fixtures")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Files of tests that are named one by one run in this process; folders run in a process a core."""
    if any(Path(argument.partition("::")[0]).suffix == ".py" for argument in config.args):
        config.option.dist = "no"
        return 0
    return None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """For `-m unit` no other folder is looked into."""
    others = collection_path.parent == Path(__file__).parent and collection_path.name != "unit"
    return True if config.option.markexpr == "unit" and others else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What lies in `unit` and is not slow is a unit test: `pytest -m unit`."""
    for item in items:
        if Path(__file__).parent / "unit" in item.path.parents and item.get_closest_marker("slow") is None:
            item.add_marker("unit")
