"""Each of the named recipes trains."""

from dataclasses import replace

import pytest

from imgclf.data.loading.loader import Loader
from imgclf.training.loop import train
from imgclf.training.recipes import EXPERIMENTS
from support.plans import plan_of


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS.names() if EXPERIMENTS.get(name).train.epochs])
def test_every_recipe_is_built_and_takes_a_step(make_source, name):
    source = make_source(n=2, classes=2)
    experiment = EXPERIMENTS.get(name)
    plan = plan_of(experiment, source)
    assert (plan.spec.arch, plan.preprocess.size) == (experiment.arch, experiment.size)
    chosen = ("epochs", "lr", "optimizer", "schedule", "batch_size", "weight_decay", "seed", "drop_last")
    assert all(getattr(plan.experiment.train, name) == getattr(experiment.train, name) for name in chosen)
    config = replace(plan.experiment.train, epochs=1, batch_size=4, device="cpu")
    loader = Loader(source, source.samples, plan.preprocess, classes=source.classes, batch_size=4, train=True)
    history = train(plan.model, loader, None, config)
    assert history.epochs[0].train_loss > 0
    assert history.ended == "done"
