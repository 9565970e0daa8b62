"""Several processes that train one model give what one gives."""

import os
import subprocess
import sys

import pytest
import torch

from imgclf import distributed

TALK = """
import torch
from imgclf import distributed

distributed.join()
rank, world = distributed.shard()
total = distributed.sum_over_all(torch.tensor(float(rank + 1)))
assert total == sum(range(1, world + 1)), total
assert distributed.any_of_all(rank == 1, torch.device("cpu"))
assert not distributed.any_of_all(False, torch.device("cpu"))
shares = distributed.gather(list("abcde")[rank::world])
assert distributed.in_turn(shares) == list("abcde"), shares
assert distributed.is_main() == (rank == 0)

torch.manual_seed(rank)
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
wrapped = distributed.wrap(model, torch.device("cpu"))
x = torch.arange(12.0).reshape(4, 3)[rank::world]
wrapped(x).square().sum().backward()
gradients = distributed.gather(model[0].weight.grad)
assert all(torch.equal(gradients[0], other) for other in gradients)
distributed.share_buffers(model)
means = distributed.gather(model[1].running_mean)
assert all(torch.equal(means[0], other) for other in means)
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
    assert distributed.any_of_all(True, torch.device("cpu"))
    model = torch.nn.Linear(1, 1)
    assert distributed.wrap(model, torch.device("cpu")) is model


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [0, 1, 4, 7])
def test_shares_come_back_in_turn(n, world):
    items = list(range(n))
    assert distributed.in_turn([items[rank::world] for rank in range(world)]) == items
