"""Plans of training without an audit or a split of their own."""

from dataclasses import replace

from imgclf.core.config import ExperimentConfig
from imgclf.data.audit import Audit
from imgclf.data.dataset import Source
from imgclf.data.split import Split
from imgclf.estimator.plan import Plan, make_plan
from imgclf.estimator.settings import Request


def plan_of(experiment: ExperimentConfig, source: Source, **asked: object) -> Plan:
    """The plan of an experiment that trains on all samples of a source, or on those that are in its train part."""
    parts = any(sample.split for sample in source.samples)
    rows = source.samples if parts else tuple(replace(sample, split="train") for sample in source.samples)
    return make_plan(Request(experiment, **asked), Audit(source), Split(rows))
