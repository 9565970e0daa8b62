"""Several processes that train one model give what one gives."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgclf.cli import app

TALK = """
import os
import torch
from imgclf.runtime import distributed

distributed.join()
rank, world = distributed.shard()
total = distributed.sum_over_all(torch.tensor(float(rank + 1)))
assert total == sum(range(1, world + 1)), total
assert distributed.any_of_all([rank == 1, False], torch.device("cpu")) == [True, False]
assert distributed.gather(rank) == list(range(world))
assert distributed.is_main() == (rank == 0)

torch.manual_seed(rank)
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
distributed.share(model.state_dict().values())
weights = distributed.gather(model[0].weight)
assert all(torch.equal(weights[0], other) for other in weights)
if rank == 0:
    model[0](torch.ones(1, 3)).sum().backward()  # the other has no images of this batch
distributed.sum_gradients(model.parameters())
assert torch.equal(model[0].weight.grad, torch.ones(2, 3))
assert torch.equal(model[1].weight.grad, torch.zeros(2))

import torch._dynamo

distributed._leave()
os.write(1, b"agreed, threads: %d\\n" % len(os.listdir("/proc/self/task")))  # at once: the other writes as well
"""


def torchrun(*arguments, processes=2, **options):
    """Run `python ARGUMENTS` in several processes on this machine; each has one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False, **options
    )


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_processes_agree_and_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread that does may end the process with an error after all is done."""
    (tmp_path / "talk.py").write_text(TALK)
    result = torchrun(str(tmp_path / "talk.py"))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["agreed, threads: 1"] * 2


def test_two_processes_learn_what_one_learns(photos, in_folder):
    """The same loss curve, the same figures over all images, one run folder."""
    size = ("--arch", "lenet", "--size", "16", "--epochs", "3", "--batch-size", "7", "--seed", "3")
    options = (*size, "--precision", "fp32", "--optimizer", "sgd", "--lr", "0.05")
    command = ("train", str(photos), *options, "--class-weights", "balanced", "--json", "--name")
    alone = CliRunner().invoke(app, [*command, "of-1"])
    shared = torchrun("-m", "imgclf", *command, "of-2")
    assert (alone.exit_code, shared.returncode) == (0, 0), shared.stderr
    results = []
    for stdout in (alone.stdout, shared.stdout):
        (line,) = stdout.splitlines()
        results.append(json.loads(line))
    assert [path.name for path in sorted(Path("runs").iterdir())] == ["of-1", "of-2"]
    texts = [Path("runs", f"of-{processes}", "history.csv").read_text() for processes in (1, 2)]
    one, two = (list(csv.DictReader(text.splitlines())) for text in texts)
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4), name
    assert results[0]["test"]["confusion"] == results[1]["test"]["confusion"]
    assert results[0]["test"]["loss"] == pytest.approx(results[1]["test"]["loss"], abs=1e-4)
