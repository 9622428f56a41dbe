"""Where tensors live while a group is answered: the host, or a CUDA device and a stream of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from opa_trt.errors import BackendUnavailable, UnknownNameError
from opa_trt.machine import has_gpu

CPU, CUDA = "cpu", "cuda"


class Device(ABC):
    """Memory, copies to and from it, and the order of what runs there.

    Engines enqueue on the current stream. Within ``scope`` that is this device's own, so what is
    uploaded, run and downloaded there keeps its order without waiting in between.
    """

    name: str

    def scope(self) -> AbstractContextManager[None]:
        """Everything within runs on this device's stream."""
        return nullcontext()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Memory that is not initialised."""
        return torch.empty(shape, dtype=getattr(torch, dtype), device=self.name)

    @abstractmethod
    def upload(self, tensor: Tensor, into: Tensor | None = None) -> Tensor:
        """A host tensor on this device, in the first rows of ``into`` where that is given."""

    @abstractmethod
    def gather(self, tensor: Tensor, rows: npt.NDArray[np.int64], into: Tensor) -> Tensor:
        """These rows of a tensor of this device, in ``into``, which has as many."""

    @abstractmethod
    def download(self, tensor: Tensor) -> npt.NDArray[np.float32]:
        """A tensor of this device on the host, valid until the next download; waits for it."""

    @abstractmethod
    def wait(self) -> None:
        """Return when all that was enqueued in ``scope`` is done."""


class Host(Device):
    """The CPU: nothing is copied, and nothing is pending."""

    name = CPU

    def upload(self, tensor: Tensor, into: Tensor | None = None) -> Tensor:
        return tensor

    def gather(self, tensor: Tensor, rows: npt.NDArray[np.int64], into: Tensor) -> Tensor:
        # Not by torch, whose threads would go on spinning while the next engine's want the cores.
        np.take(tensor.numpy(), rows, axis=0, out=into.numpy(), mode="clip")
        return into

    def download(self, tensor: Tensor) -> npt.NDArray[np.float32]:
        array: npt.NDArray[np.float32] = tensor.detach().numpy()
        return array

    def wait(self) -> None:
        pass


class Cuda(Device):
    """A GPU with a stream that is not the default one, and pinned memory for what comes back."""

    name = CUDA

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._pinned: dict[torch.dtype, Tensor] = {}

    @contextmanager
    def scope(self) -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    def upload(self, tensor: Tensor, into: Tensor | None = None) -> Tensor:
        if into is None:
            return tensor.to(self.name)
        rows = into[: len(tensor)]
        rows.copy_(tensor)
        return rows

    def gather(self, tensor: Tensor, rows: npt.NDArray[np.int64], into: Tensor) -> Tensor:
        return torch.index_select(tensor, 0, torch.from_numpy(rows).to(self.name), out=into)

    def download(self, tensor: Tensor) -> npt.NDArray[np.float32]:
        pinned = self._room(tensor)
        pinned.copy_(tensor, non_blocking=True)
        self.wait()
        array: npt.NDArray[np.float32] = pinned.numpy()
        return array

    def wait(self) -> None:
        self._done.record(self._stream)
        self._done.synchronize()

    def _room(self, tensor: Tensor) -> Tensor:
        """Pinned memory of a tensor's shape, allocated when a larger one than before is asked."""
        kept = self._pinned.get(tensor.dtype)
        if kept is None or kept.numel() < tensor.numel():
            kept = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
            self._pinned[tensor.dtype] = kept
        return kept[: tensor.numel()].view(tensor.shape)


def device(name: str) -> Device:
    """The device called ``cpu`` or ``cuda``.

    Raises:
        UnknownNameError: another name.
        BackendUnavailable: there is no GPU that torch can use.
    """
    if name == CPU:
        return Host()
    if name != CUDA:
        kind = "device"
        raise UnknownNameError(kind, name, (CPU, CUDA))
    if not has_gpu():
        message = "no GPU that torch can use."
        raise BackendUnavailable(message, remedy="install a CUDA build of torch, or use the CPU.")
    return Cuda()
