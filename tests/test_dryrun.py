"""What training would do and take."""

from imgclf.choices import ASKED
from imgclf.dryrun import dry_run, python_of

TINY = {"arch": "lenet", "size": [16, 16], "weights": "none", "train": {"epochs": 2, "device": "cpu"}}


def test_a_plan_says_what_it_takes_and_leaves_nothing_behind(photos, in_folder):
    before = sorted(in_folder.rglob("*"))
    plan = dry_run(photos, TINY)
    assert {"training", "test"} == plan.seconds.keys()
    assert 0 < plan.seconds["training"] < 60
    assert plan.memory > 4 * 4 * 1000
    values = {choice.name: (choice.value, choice.reason) for choice in plan.choices}
    assert values["epochs"] == ("2", ASKED)
    assert values["size"] == ("16×16", ASKED)
    assert sorted(in_folder.rglob("*")) == before


def test_a_plan_for_a_time(photos):
    config = {**TINY, "train": {"minutes": 0.2, "device": "cpu"}}
    plan = dry_run(photos, config)
    assert 0 < plan.seconds["training"] <= 12


def test_the_python_of_a_plan_trains(photos, in_folder):
    code = python_of(str(photos), {**TINY, "data": {}}, None)
    scope = {}
    exec(code, scope)
    assert len(scope["classifier"].history_) == 2
    assert "data" not in code
