"""What a process asks of the others, where there are none."""

import pytest
import torch

from imgclf.core.errors import ConfigError
from imgclf.runtime import distributed


def test_a_process_on_its_own_has_nobody_to_ask():
    assert (distributed.rank(), distributed.world_size()) == distributed.shard() == (0, 1)
    assert distributed.is_main()
    assert distributed.gather("x") == ["x"]
    assert distributed.sum_over_all(torch.tensor(2.0)) == 2
    assert distributed.any_of_all([True, False], torch.device("cpu")) == [True, False]
    model = torch.nn.Linear(1, 1)
    distributed.sum_gradients(model.parameters())
    assert model.weight.grad is None


def test_more_processes_than_devices_are_refused(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes for 1 CUDA device on this machine"):
        distributed.join()


def test_batch_norms_on_cuda_see_the_whole_batch(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    distributed.sync_norms(model, torch.device("cpu"))
    assert type(model[1]) is torch.nn.BatchNorm2d
    distributed.sync_norms(model, torch.device("cuda"))
    assert type(model[1]) is torch.nn.SyncBatchNorm


def test_batch_norms_that_hold_an_activation_keep_it(monkeypatch):
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    timm = pytest.importorskip("timm")
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        distributed.sync_norms(model, torch.device("cuda"))
        assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
        assert torch.allclose(model(images), before, atol=1e-6)
