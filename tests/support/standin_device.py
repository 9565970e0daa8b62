"""A stand-in for an accelerator: tensors that say they lie on `cuda:0` or `mps:0`, computed by the processor.

It refuses what a GPU refuses: tensors of two devices in one operation, numpy arrays of what lies on the device, and
waiting for the device while a graph is captured; on Metal also float64, and operations that torch has no kernel for
there. It counts the other places where the processor waits. Its memory is out where a single result takes more than
there is. Kernels, streams and speed are not those of a GPU, and nothing is compiled for it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo  # before its annotations meet what is replaced here
import torchgen
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import return_and_correct_aliasing

MEMORY = 2**33
FACTORIES = "arange as_tensor empty empty_strided eye full linspace ones rand randint randn randperm tensor zeros"
TAKES_BOTH = ("aten::index.", "aten::index_put", "aten::_index_put")  # indices may lie on the processor
COPIES = ("aten::copy_", "aten::_foreach_copy_")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

waits: list[str] = []  # where the processor waited for the device, as "file:line" of imgclf


class Here:
    """Which device the stand-in is."""

    device = torch.device("cuda", 0)

    @classmethod
    def has(cls, device: Any) -> bool:
        """Whether this names it."""
        return torch.device(device).type == cls.device.type

    @classmethod
    def refuse(cls, name: str, found: Any) -> None:
        """Raise what torch raises on Metal, where there is no float64, and where it has no kernel."""
        if cls.device.type != "mps":
            return
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float64 for leaf in tree.tree_leaves(found)):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        if name not in metal_operations():
            raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device.")


@cache
def metal_operations() -> frozenset[str]:
    """The operations that torch has a kernel for on Metal, by its own list."""
    text = (Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml").read_text()
    entries = {entry.partition("(")[0]: entry for entry in text.split("\n- func: ")[1:]}

    def there(entry: str) -> bool:
        delegate = re.search(r"structured_delegate: (\S+)", entry)
        if delegate is None and "  dispatch:" not in entry:  # made of others
            return True
        return re.search("MPS|Composite", entry + (entries[delegate[1]] if delegate else "")) is not None

    return frozenset(f"aten::{name}" for name, entry in entries.items() if there(entry))


class OnDevice(torch.Tensor):
    """A tensor on the stand-in; `held`, on the processor, has its numbers."""

    held: torch.Tensor
    device = property(lambda self: Here.device)  # type: ignore[assignment]
    is_cuda = property(lambda self: Here.has("cuda"))  # type: ignore[assignment]
    is_mps = property(lambda self: Here.has("mps"))  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnDevice:
        place = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **place)
        made.held = held
        return made

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.held.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, object]) -> torch.Tensor:
        made: torch.Tensor = OnDevice(self.held.clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        return memo[id(self)]  # type: ignore[return-value]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SPECIAL:
            return SPECIAL[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, f"{func._schema.name}.{func._schema.overload_name}"
        _check_devices(name, args, kwargs)
        if name.startswith(WAITS) or (name.startswith(TAKES_BOTH) and _masks(args[1])):
            note_wait()
        plain_args, plain_kwargs = tree.tree_map_only(OnDevice, lambda tensor: tensor.held, (args, kwargs))
        found = func(*plain_args, **plain_kwargs)
        Memory.require(found)
        Here.refuse(name.removesuffix("."), found)
        Graph.note(func, plain_args, plain_kwargs, found)
        return return_and_correct_aliasing(func, args, kwargs, tree.tree_map_only(torch.Tensor, OnDevice, found))


def _masks(indices: list[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype is torch.bool for index in indices)


def _check_devices(name: str, args: Any, kwargs: Any) -> None:
    tensors = [leaf for leaf in tree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if all(isinstance(tensor, OnDevice) for tensor in tensors):
        return
    if name.startswith(COPIES):
        note_wait() if Graph.recording else None
        return
    ours = isinstance(args[0], OnDevice) and name.startswith(TAKES_BOTH)
    if not ours and any(not isinstance(tensor, OnDevice) and tensor.ndim > 0 for tensor in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {Here.device} and cpu! ({name})")


class Memory:
    """The bytes that one result may take."""

    most = float(MEMORY)

    @classmethod
    def require(cls, found: Any) -> None:
        """Raise what torch raises where there are not enough."""
        if (
            max((leaf.nbytes for leaf in tree.tree_leaves(found) if isinstance(leaf, torch.Tensor)), default=0)
            > cls.most
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. The stand-in has too little for one result.")

    @classmethod
    def limit(cls, fraction: float, *args: Any) -> None:
        """`torch.cuda.set_per_process_memory_fraction`."""
        cls.most = fraction * MEMORY


def note_wait() -> None:
    """Remember from where in imgclf the processor waits; a capture ends in an error."""
    if Graph.recording is not None:
        raise RuntimeError("operation not permitted when stream is capturing")
    frames = [frame for frame in traceback.extract_stack() if "/imgclf/" in frame.filename]
    waits.append(f"{frames[-1].filename.rpartition('/imgclf/')[2]}:{frames[-1].lineno}" if frames else "elsewhere")


class Graph:
    """A CUDA graph: the operations of a capture, done again by `replay` on the same memory."""

    recording: Graph | None = None

    def __init__(self) -> None:
        self._again: list[Callable[[], None]] = []

    @classmethod
    def note(cls, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        """Remember a call and what it gave, while there is a capture."""
        if cls.recording is not None:
            cls.recording._again.append(partial(_repeat, func, args, kwargs, found))

    def replay(self) -> None:
        """Do it all again."""
        for again in self._again:
            again()


def _repeat(func: Any, args: Any, kwargs: Any, found: Any) -> None:
    for place, result in zip(tree.tree_leaves(found), tree.tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(place, torch.Tensor) and place.data_ptr() != result.data_ptr():  # else a view, or done in place
            place.copy_(result)


@contextmanager
def _graph(graph: Graph, **kwargs: Any) -> Iterator[None]:
    Graph.recording = graph
    try:
        yield
    finally:
        Graph.recording = None


class _Stream:
    """All work of the stand-in is done at once, so that streams have nothing to wait for."""

    device = Here.device

    def __init__(self, *args: Any) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def is_capturing(self) -> bool:
        return Graph.recording is not None


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        if Graph.recording is not None:
            note_wait()
        Here.refuse("aten::clone", tensor)
        return OnDevice(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.held if isinstance(grad, OnDevice) else grad


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnDevice) -> torch.Tensor:
        note_wait()
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return OnDevice(grad)


_generator = torch.Generator
_to, _as_tensor, _autocast, _apply = torch.Tensor.to, torch.as_tensor, torch.autocast, torch.nn.Module._apply
_group = torch._C._group_tensors_by_device_and_dtype


def moved(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, of tensors on either side."""
    copied = kwargs.pop("copy", False)
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    changes = {"dtype": dtype, "memory_format": memory_format}
    changes = {name: value for name, value in changes.items() if value is not None}
    changed = _plain(_to, tensor, copy=copied, **changes) if copied or changes else tensor
    if device is None or device.type == changed.device.type:
        return changed
    if Here.has(device):
        return _ToDevice.apply(changed)
    return _plain(_to, _ToHost.apply(changed) if isinstance(changed, OnDevice) else changed, device)


def _plain(func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _no_array(tensor: OnDevice, *args: Any, **kwargs: Any) -> Any:
    raise TypeError(
        f"can't convert {Here.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor first"
    )


def _listed(tensor: OnDevice) -> Any:
    note_wait()
    return tensor.held.tolist()


SPECIAL: dict[Any, Callable[..., Any]] = {
    moved: moved,
    torch.Tensor.to: moved,
    torch.Tensor.cpu: lambda tensor: _ToHost.apply(tensor),
    torch.Tensor.numpy: _no_array,
    torch.Tensor.__array__: _no_array,
    torch.Tensor.tolist: _listed,
    torch.Tensor.new_tensor: lambda tensor, data, **options: OnDevice(tensor.held.new_tensor(data, **options)),
    torch.Tensor.data_ptr: lambda tensor: tensor.held.data_ptr(),
    torch.Tensor.__repr__: lambda tensor: f"OnDevice({tensor.held})",
}


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What makes tensors, also on the stand-in."""

    def made(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if device is None or not Here.has(device):
            found = make(*args, **({} if device is None else {"device": device}), **kwargs)
            if pin_memory:
                found.pinned = True  # type: ignore[attr-defined]
            return found
        if make is _as_tensor and isinstance(args[0], OnDevice):
            return args[0]
        args = tree.tree_map_only(OnDevice, lambda tensor: tensor.held, args)
        requires = kwargs.pop("requires_grad", False)
        found = make(*args, **kwargs)
        Graph.note(make, args, kwargs, found)
        Here.refuse("aten::empty.memory_format", found)
        return OnDevice(found).requires_grad_(requires)

    return made


def _cast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return _autocast("cpu" if Here.has(device_type) else device_type, *args, **kwargs)


def _swapping(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`Module._apply`; the parameters stay the same objects."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _apply(module, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _grouped(lists: Any, *args: Any) -> Any:
    """The tensors of optimizers by their device and dtype."""
    groups = _group(lists, *args).items()
    ours = [any(isinstance(leaf, OnDevice) for leaf in tree.tree_leaves(tensors)) for _, (tensors, _) in groups]
    return {(Here.device if on else key[0], key[1]): value for on, (key, value) in zip(ours, groups, strict=True)}


def install(patch: pytest.MonkeyPatch, kind: str = "cuda") -> None:
    """Let torch find the stand-in as its only accelerator, `cuda` or `mps`, until `patch` is undone."""
    waits.clear()
    patch.setattr(Here, "device", torch.device(kind, 0))
    patch.setattr(Memory, "most", float(MEMORY))
    for name in FACTORIES.split():
        patch.setattr(torch, name, _factory(getattr(torch, name)))
    patch.setattr(torch, "autocast", _cast)
    patch.setattr(torch, "Generator", lambda device="cpu": _generator())
    # Tensors of this kind can't be split in inference mode.
    patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else torch.enable_grad())
    patch.setattr(torch.Tensor, "to", moved)
    patch.setattr(torch.Tensor, "is_pinned", lambda tensor, *args: getattr(tensor, "pinned", False))
    patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    patch.setattr(torch.nn.Module, "_apply", _swapping)
    patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped)
    patch.setattr(torch.accelerator, "current_stream", _Stream)
    (_install_cuda if kind == "cuda" else _install_metal)(patch)


def _install_metal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    patch.setattr(torch.mps, "synchronize", note_wait)
    patch.setattr(torch.mps, "get_rng_state", lambda: torch.get_rng_state())
    patch.setattr(torch.mps, "set_rng_state", lambda state: torch.set_rng_state(state))
    patch.setattr(torch.mps, "recommended_max_memory", lambda: MEMORY)
    patch.setattr(torch.mps, "driver_allocated_memory", lambda: 0)


def _install_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.Tensor, "cuda", lambda tensor, *args: moved(tensor, Here.device))
    properties = SimpleNamespace(total_memory=MEMORY, name="stand-in", major=9, minor=0)
    for name, fake in {
        "_lazy_init": lambda: None,
        "CUDAGraph": Graph,
        "Stream": _Stream,
        "current_device": lambda: 0,
        "current_stream": _Stream,
        "device": lambda device: nullcontext(),
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_name": lambda *args: properties.name,
        "get_device_properties": lambda *args: properties,
        "get_rng_state": lambda *args: torch.get_rng_state(),
        "graph": _graph,
        "is_available": lambda: True,
        "is_bf16_supported": lambda **options: True,
        "is_current_stream_capturing": lambda: Graph.recording is not None,
        "mem_get_info": lambda *args: (MEMORY, MEMORY),
        "set_per_process_memory_fraction": Memory.limit,
        "set_rng_state": lambda state, *args: torch.set_rng_state(state),
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda *args: note_wait(),
    }.items():
        patch.setattr(torch.cuda, name, fake)
