"""Several processes that train one model give what one gives."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imgclf.core.errors import ConfigError
from imgclf.runtime import distributed

TALK = """
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
print("agreed")
"""


def torchrun(*arguments, processes=2, **options):
    """Run `python ARGUMENTS` in several processes on this machine; each has one thread."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=300, env=environment, check=False, **options
    )


@pytest.mark.slow
def test_processes_agree(tmp_path):
    script = tmp_path / "talk.py"
    script.write_text(TALK)
    result = torchrun(str(script))
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("agreed") == 2


def test_a_process_on_its_own_has_nobody_to_ask():
    assert distributed.shard() == (0, 1)
    assert distributed.is_main()
    assert distributed.gather("x") == ["x"]
    assert distributed.sum_over_all(torch.tensor(2.0)) == 2
    assert distributed.any_of_all([True, False], torch.device("cpu")) == [True, False]
    model = torch.nn.Linear(1, 1)
    distributed.sum_gradients(model.parameters())
    assert model.weight.grad is None


LEAVE = """
import os
from imgclf.runtime import distributed

distributed.join()
import torch._dynamo

distributed._leave()
os.write(1, b"%d\\n" % len(os.listdir("/proc/self/task")))  # at once: the other writes as well
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that does may end the process with an error after all is done."""
    (tmp_path / "leave.py").write_text(LEAVE)
    done = torchrun(str(tmp_path / "leave.py"))
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_more_processes_than_devices_are_refused(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes for 1 CUDA device on this machine"):
        distributed.join()


def test_batch_norms_that_hold_an_activation_keep_it():
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        distributed._convert(model)
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        assert torch.allclose(model(images), before, atol=1e-6)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(photos, in_folder):
    """The same loss curve, the same figures over all images, one run folder."""
    command = (
        "train",
        str(photos),
        "--arch",
        "lenet",
        "--size",
        "16",
        "--epochs",
        "3",
        "--batch-size",
        "7",
        "--seed",
        "3",
    )
    options = ("--precision", "fp32", "--optimizer", "sgd", "--lr", "0.05", "--json", "--class-weights", "balanced")
    results = {}
    for processes in (1, 2):
        runs = torchrun("-m", "imgclf", *command, *options, "--name", f"of-{processes}", processes=processes)
        assert runs.returncode == 0, runs.stderr
        results[processes] = json.loads(runs.stdout.splitlines()[-1])
        assert len(runs.stdout.splitlines()) == 1
    assert [path.name for path in sorted(Path("runs").iterdir())] == ["of-1", "of-2"]
    texts = [Path("runs", f"of-{processes}", "history.csv").read_text() for processes in (1, 2)]
    one, two = (list(csv.DictReader(text.splitlines())) for text in texts)
    for a, b in zip(one, two, strict=True):
        for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4), name
    assert results[1]["test"]["confusion"] == results[2]["test"]["confusion"]
    assert results[1]["test"]["loss"] == pytest.approx(results[2]["test"]["loss"], abs=1e-4)
