"""Memory that a node writes and its successors read, group after group."""

from __future__ import annotations

from torch import Tensor

from opa_trt.device import Device
from opa_trt.errors import StaleLease
from opa_trt.tree import TensorSpec


class Buffer:
    """Room for ``rows`` rows of one tensor on a device, allocated once.

    Each group takes a lease; taking the next one ends it.
    """

    def __init__(self, spec: TensorSpec, rows: int, device: Device) -> None:
        self._memory = device.empty((rows, *spec.shape), spec.dtype)
        self._views: dict[int, Tensor] = {}  # by rows: making one takes longer than finding it
        self._generation = 0

    def lease(self, rows: int) -> Lease:
        """The first ``rows`` rows, until the next lease is taken."""
        self._generation += 1
        return Lease(self, self._generation, rows)

    def _view(self, rows: int) -> Tensor:
        view = self._views.get(rows)
        if view is None:
            view = self._views[rows] = self._memory[:rows]
        return view


class Lease:
    """The right to one group's rows of a buffer."""

    def __init__(self, buffer: Buffer, generation: int, rows: int) -> None:
        self._buffer, self._generation, self._rows = buffer, generation, rows

    def tensor(self) -> Tensor:
        """A view ``[rows, …]`` of the buffer; the buffer owns the memory.

        Raises:
            StaleLease: a later group has taken the buffer.
        """
        buffer = self._buffer
        if buffer._generation != self._generation:
            message = f"lease {self._generation} of a buffer now leased as {buffer._generation}."
            raise StaleLease(message, expected="the present group's lease.")
        return buffer._view(self._rows)
