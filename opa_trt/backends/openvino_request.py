"""One infer request of OpenVINO, and the tensors that it was told of."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from opa_trt.tree import Segment

KEPT = 32  # tensors that a request remembers


class Request:
    """An infer request that is told of tensors only when they are others than before.

    Telling it costs more than checking: 25 µs a tensor on a small network.
    """

    def __init__(self, compiled: Any, segment: Segment) -> None:
        import openvino as ov

        self._tensor = ov.Tensor
        self._request = compiled.create_infer_request()
        self._inputs = [spec.name for spec in segment.inputs]
        self._outputs = [spec.name for spec in segment.outputs]
        self._known: dict[tuple[int, int, int], Any] = {}  # by port, rows and address
        self._told: dict[int, tuple[int, int, int]] = {}  # what each port has now
        self._bound: tuple[int, list[int]] | None = None  # rows and addresses of all ports

    def bind(self, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> None:
        """Read and write these tensors from now on."""
        tensors = [inputs[name] for name in self._inputs] + [out[name] for name in self._outputs]
        rows = tensors[0].shape[0]
        places = [tensor.data_ptr() for tensor in tensors]
        if (rows, places) == self._bound:
            return
        self._bound = None  # until all are told
        for port, (place, tensor) in enumerate(zip(places, tensors, strict=True)):
            self._tell(port, (port, rows, place), tensor)
        self._bound = rows, places

    def infer(self) -> None:
        """Fill the outputs."""
        self._request.infer(share_outputs=True)  # or it copies them into a dictionary

    def start(self) -> None:
        """Begin to fill the outputs."""
        self._request.start_async()

    def wait(self) -> None:
        """Return when they are filled; raises what went wrong."""
        self._request.wait()

    def _tell(self, port: int, place: tuple[int, int, int], tensor: Tensor) -> None:
        """Ports count from the first input to the last output."""
        if self._told.get(port) == place:
            return
        self._told.pop(port, None)
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            known = self._known[place] = self._tensor(_view(tensor), shared_memory=True)
        output = port - len(self._inputs)
        if output < 0:
            self._request.set_input_tensor(port, known)
        else:
            self._request.set_output_tensor(output, known)
        self._told[port] = place


def _view(tensor: Tensor) -> Any:
    """An array on the tensor's memory that does not keep it alive.

    It is used again only for a tensor that lies at the same place with the same shape, and a
    remembered view must not hold memory that its owner let go.
    """
    memory: Any = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    return np.frombuffer(memory, dtype=dtype).reshape(tensor.shape)
