"""How a network computes: its precision, its threads, its random numbers, its memory, and the one way to notice that
memory ran out. What one computation needs, no other thread of the program sees."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imgclf.core.errors import OutOfMemory

T = TypeVar("T")

CONTIGUOUS = "imgclf_contiguous"  # the attribute that marks such a network
SMALL_STEP = 5e7  # floating-point operations of a forward pass: LeNet takes 2e7 for 32 images
HOLDERS = (nn.Module, MethodType, list, tuple, dict)  # what may lead to a module
# What libraries below torch say in a plain RuntimeError.
NO_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",  # oneDNN
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """The context in which a forward pass runs."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def memory_format_of(model: nn.Module) -> torch.memory_format:
    """Channels-last memory, but for a network of the user's own that does not work in it (`models/inspection.py`)."""
    contiguous = any(getattr(module, CONTIGUOUS, False) for module in model.modules())
    return torch.contiguous_format if contiguous else torch.channels_last


def step_flops(model: nn.Module, example: torch.Tensor, batch_size: int) -> float:
    """The floating-point operations of one forward pass of a batch; `example` is an input of one image."""
    counter = _Operations()
    with torch.no_grad(), counter:
        in_evaluation(model)(example)
    return counter.total * batch_size


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the floating-point operations of this thread, by the formulas of torch's `FlopCounterMode`; that one also
    hooks every module of the process, in all threads."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # loads triton, which predictions of few images do without

        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = flop_registry
        self.total: float = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = self._formulas.get(getattr(func, "_overloadpacket", func))
        if count is None and hasattr(func, "decompose"):  # in inference mode, an operation with a formula may be within
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        self.total += count(*args, **kwargs, out_val=result) if count is not None else 0
        return result


def all_finite(tensors: Sequence[torch.Tensor], device: torch.device) -> bool:
    """Whether none of them holds NaN or infinity; one wait for `device`, not one for each.

    The sum of a tensor tells in a tenth of the time: it is not finite where a value is not. It may also have been too
    large; then every value is looked at.
    """

    def together(looks: Iterable[torch.Tensor]) -> bool:
        return bool(torch.stack([look.to(device, non_blocking=True) for look in looks]).all())

    if not tensors:
        return True
    return together(tensor.sum().isfinite() for tensor in tensors) or together(t.isfinite().all() for t in tensors)


@contextmanager
def enough_threads(flops: float) -> Iterator[None]:
    """Compute small steps on one core. Two save a third of such a step on a quiet machine; on a busy one each of its
    many operations waits for the slower core, and it takes twenty times as long."""
    if flops >= SMALL_STEP:
        yield
        return
    torch.get_num_threads()  # else torch would set this thread's number when it first computes
    with _openmp().limit(limits=1):
        yield


@cache
def _openmp() -> Any:
    """The controller of the threads that this thread alone computes with: `torch.set_num_threads` also sets those of
    threads that begin later; OpenMP beneath it, where torch was built with it, has a number for each."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="openmp")


def in_evaluation(model: nn.Module) -> nn.Module:
    """The model itself where all of it is in evaluation mode, else an `own_copy` that is."""
    return own_copy(model) if any(module.training for module in model.modules()) else model


def own_copy(model: nn.Module) -> nn.Module:
    """A network with the very weights and buffers of `model`, in evaluation mode, whose modules are nobody else's.

    Hooks on it are in no other thread's way. Takes some thousandths of a second, a tenth of a deep copy.
    """
    twins: dict[nn.Module, nn.Module] = {module: object.__new__(type(module)) for module in model.modules()}

    def mine(value: Any) -> Any:
        if not isinstance(value, HOLDERS):
            return value
        if isinstance(value, nn.Module):
            return twins.get(value, value)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, mine(value.__self__))
        if isinstance(value, dict):
            copied = value.copy()
            copied.update([(key, mine(entry)) for key, entry in value.items()])
            return copied
        return type(value)(map(mine, value)) if type(value) in (list, tuple) else value

    for module, twin in twins.items():
        twin.__dict__.update(mine(module.__dict__), training=False, _compiled_call_impl=None)
    return twins[model]


def ran_out_of_memory(error: Exception) -> bool:
    """Whether this is a lack of memory; some allocators say so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_MEMORY)


def in_parts_that_fit(
    compute: Callable[[int], T], most: int, device: torch.device, least: int = 1, message: str = ""
) -> tuple[T, int]:
    """Call `compute(most)`, and with half as many images each time that memory runs out; gives its result and the final
    number of images. Raises `OutOfMemory` (`message`) if not even `least` of them fit."""
    while True:
        try:
            return compute(most), most
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if most <= least:
                raise OutOfMemory(message or f"{device} has too little memory for a single image") from error
        most = (most + 1) // 2
        release_memory(device)


def release_memory(device: torch.device) -> None:
    """Give back what a pass that failed still holds, so that a smaller one finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
