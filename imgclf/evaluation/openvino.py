"""OpenVINO in place of torch on a processor: a network converted, compiled for this machine, and kept in the cache.

Each image is a job of its own on one core, and there are as many jobs at once as cores. So no image's outputs depend on
its batch, no core waits for another, and on two cores it is faster than batches are (docs/speed.md).

Compiled is what comes before a linear head: all models that share a frozen backbone share the compiled one.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from contextlib import redirect_stderr, suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from imgclf.core.config import BACKENDS, PreprocessConfig
from imgclf.core.errors import ConfigError, ImgclfError, MissingExtra, warn_caller
from imgclf.core.files import cache_folder, seal, unseal, write_atomic
from imgclf.evaluation.views import weighted_views
from imgclf.models.build import head_of
from imgclf.models.ensemble import Ensemble
from imgclf.models.features import feature_layers, with_features
from imgclf.runtime.compute import own_copy, ran_out_of_memory, step_flops
from imgclf.runtime.device import cores
from imgclf.transforms.preprocess import to_input

FOLDER = "openvino"  # within the cache folder
MIN_OPERATIONS = 5e8  # an image; a smaller network is converted for longer than a thousand images gain
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # of probabilities beside torch's; a wrong graph is far off
OPERATOR = re.compile(r"\baten[.:]+\w+")
LOCK = threading.RLock()  # torch.export changes torch while it traces

# By pixels and precision: the state of the weights, and what was made of them, None where that was not possible.
Made = dict[object, tuple[object, "CompiledNetwork | None"]]

_made: WeakKeyDictionary[nn.Module, Made] = WeakKeyDictionary()
_operations: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


class NotConvertible(ImgclfError):
    """OpenVINO can't compute this network, or not as torch does."""


class CompiledNetwork:
    """A network as OpenVINO computes it: `network(pixels)`, in any number of threads at once."""

    def __init__(self, compiled: Any, head: nn.Linear | None) -> None:
        self._compiled, self._head = compiled, head

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits and, behind them in each row, features, float32 (n, k + d), of pixels (n, height, width, channels)."""
        rows: list[torch.Tensor] = [torch.empty(0)] * len(pixels)

        def keep(job: Any, place: int) -> None:
            rows[place] = torch.from_numpy(job.get_output_tensor(0).data.copy())

        jobs = _openvino().AsyncInferQueue(self._compiled, min(cores(), len(pixels)))
        jobs.set_callback(keep)
        for place, image in enumerate(pixels.numpy()):
            jobs.start_async({0: image[None]}, place)
        jobs.wait_all()
        if self._head is not None:  # of one image at a time, as all before it
            rows = [torch.cat([self._head(row), row], 1) for row in rows]
        return torch.cat(rows)


def is_installed() -> bool:
    """Whether the extra `openvino` is."""
    return find_spec("openvino") is not None


def network_for(
    model: nn.Module, preprocess: PreprocessConfig, device: torch.device, precision: torch.dtype, backend: str
) -> CompiledNetwork | None:
    """The model as OpenVINO computes it on this machine: from memory, from the cache folder, or converted now. None
    where torch is to compute it, also where OpenVINO can't: then, once, with a warning that names the operator.

    Args:
        model: In evaluation mode; maps images (n, channels, height, width) to logits (n, k).
        preprocess: How pixels become its input, and the views of an image that are averaged.
        device: Where the model is.
        precision: float32 or bfloat16. It is always given: OpenVINO by itself chooses by the processor.
        backend: `torch`, `openvino` or `auto`.

    Raises:
        ConfigError: `backend` is something else, or OpenVINO is to compute what is not on the processor.
        MissingExtra: OpenVINO is asked for and not installed.
    """
    if pick_backend(backend, model, preprocess, device) == "torch":
        return None
    state = [(tensor.data_ptr(), tensor._version) for tensor in (*model.parameters(), *model.buffers())]
    wanted = _pixels(preprocess), precision
    with LOCK:
        known = _made.setdefault(model, {})
        if wanted not in known or known[wanted][0] != state:
            try:
                known[wanted] = state, _compile(model, preprocess, precision)
            except NotConvertible as error:
                warn_caller(f"{error}; torch computes it")
                known[wanted] = state, None
        return known[wanted][1]


def pick_backend(name: str, model: nn.Module, preprocess: PreprocessConfig, device: torch.device) -> str:
    """`torch` or `openvino`: what `auto` takes depends on the network and the machine alone. See `network_for`."""
    if name not in BACKENDS:
        raise ConfigError(f"backend is {name!r}; allowed: {', '.join(BACKENDS)}")
    if name == "openvino" and device.type != "cpu":
        raise ConfigError(f"backend openvino computes on the processor, and the device is {device}: use --device cpu")
    if name != "auto":
        return name
    return "openvino" if device.type == "cpu" and is_installed() and is_large(model, preprocess) else "torch"


def is_large(model: nn.Module, preprocess: PreprocessConfig) -> bool:
    """Whether a network takes so many operations an image that it pays to convert it."""
    height, width = preprocess.size
    if 2 * sum(weight.numel() for weight in model.parameters()) * height * width < MIN_OPERATIONS:
        return False  # even if each weight met every pixel; to count exactly loads half of torch's compiler
    if model not in _operations:
        try:
            _operations[model] = step_flops(model, torch.zeros(1, preprocess.channels, *preprocess.size), 1)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            return False  # torch says what there is too little of
    return _operations[model] > MIN_OPERATIONS


def _compile(model: nn.Module, preprocess: PreprocessConfig, precision: torch.dtype) -> CompiledNetwork:
    network, head = _without_head(model)
    core, settings = _core(), {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], **_threads()}
    path = cache_folder() / FOLDER / f"{_key(network, preprocess, precision)}.blob"
    with suppress(OSError, ValueError, RuntimeError):  # none, or damaged: it is made anew
        kept = CompiledNetwork(core.import_model(bytes(unseal(path.read_bytes())), "CPU", settings), head)
        if _agrees(model, kept, preprocess, precision):  # the code of a user's own network may have changed
            return kept
    compiled = core.compile_model(_converted(network, preprocess), "CPU", settings)
    made = CompiledNetwork(compiled, head)
    if not _agrees(model, made, preprocess, precision):
        raise NotConvertible("OpenVINO's probabilities differ from those of torch")
    with suppress(OSError):  # a full disk, a cache that can't be written: it stays in memory
        path.parent.mkdir(parents=True, exist_ok=True)
        content = compiled.export_model().getvalue()
        write_atomic(path, content, seal(content))
    return made


def _without_head(model: nn.Module) -> tuple[nn.Module, nn.Linear | None]:
    """A network of the same weights that gives features (n, d), and the linear head that makes logits of them; without
    one, a network that gives both, or the model itself where the head is not known."""
    try:
        names = feature_layers(model)
    except ConfigError:
        return model, None
    head = model.get_submodule(names[0])
    if isinstance(model, Ensemble) or not isinstance(head, nn.Linear) or head is not head_of(model):
        return with_features(model), None
    network = own_copy(model)
    network.set_submodule(names[0], nn.Identity())
    return network, head


class _OfPixels(nn.Module):
    """A network of pixels, uint8 (n, height, width, channels), with the views of an image."""

    def __init__(self, network: nn.Module, preprocess: PreprocessConfig) -> None:
        super().__init__()
        self.network, self._tta = network, preprocess.tta
        self.mean = nn.Buffer(255 * torch.tensor(preprocess.mean).view(-1, 1, 1))
        self.std = nn.Buffer(255 * torch.tensor(preprocess.std).view(-1, 1, 1))
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        return sum(
            (weight * self.network(view).float() for weight, view in weighted_views(images, self._tta)),
            start=torch.zeros(()),
        )


def _converted(network: nn.Module, preprocess: PreprocessConfig) -> Any:
    """The network as OpenVINO's graph, for one image of pixels."""
    level = logging.root.manager.disable
    logging.disable()
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):  # torch would print whole graphs
            program = torch.export.export(_OfPixels(network, preprocess), (_example(preprocess),), strict=False)
        return _openvino().convert_model(program)
    except Exception as error:  # whatever a user's network does to be traced
        found = OPERATOR.search(str(error))
        reason = found[0] if found else (str(error).strip() or type(error).__name__).splitlines()[0]
        raise NotConvertible(f"OpenVINO can't compute {type(network).__name__}: {reason}") from error
    finally:
        logging.disable(level)


def _agrees(model: nn.Module, network: CompiledNetwork, preprocess: PreprocessConfig, precision: torch.dtype) -> bool:
    """Whether both give the same probabilities for an image that is always the same: no data decide what is chosen."""
    example = _example(preprocess)
    with torch.inference_mode():
        views = weighted_views(to_input(example, preprocess, torch.device("cpu")), preprocess.tta)
        expected = torch.stack([weight * model(view).float() for weight, view in views]).sum(0).softmax(1)
        got = network(example)[:, : expected.shape[1]].softmax(1)
    return got.shape == expected.shape and float((got - expected).abs().max()) <= TOLERANCES[precision]


def _example(preprocess: PreprocessConfig) -> torch.Tensor:
    """Smooth patches of color, as in a photo, uint8 (1, height, width, channels); always the same."""
    coarse = torch.rand(1, preprocess.channels, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, preprocess.size, mode="bilinear", align_corners=True)
    return (smooth * 255).byte().permute(0, 2, 3, 1).contiguous()


def _key(network: nn.Module, preprocess: PreprocessConfig, precision: torch.dtype) -> str:
    """What a compiled network depends on: weights, layers, pixels, precision, and who made it for which machine."""
    core = _core()
    machine = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    makers = [version(name) for name in ("openvino", "torch")]
    digest = sha256(repr((str(network), _pixels(preprocess), precision, _threads(), machine, makers)).encode())
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + str(tensor.dtype).encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _pixels(preprocess: PreprocessConfig) -> tuple[object, ...]:
    """How pixels become the network's input."""
    return preprocess.size, preprocess.channels, preprocess.mean, preprocess.std, preprocess.tta


def _threads() -> dict[str, int | str]:
    """A stream of jobs on each core that this process may use."""
    return {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}


@cache
def _core() -> Any:
    return _openvino().Core()


@cache
def _openvino() -> Any:
    """The library. On import it reports to its makers and leaves a file in the home folder, but for this: without the
    package that does so it takes a stand-in of its own."""
    if not is_installed():
        raise MissingExtra("openvino", "predictions by OpenVINO")
    telemetry = "openvino_telemetry"
    loaded = telemetry in sys.modules
    if not loaded:
        sys.modules[telemetry] = None  # type: ignore[assignment]
    try:
        import openvino

        return openvino
    finally:
        if not loaded:
            del sys.modules[telemetry]
