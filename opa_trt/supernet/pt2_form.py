"""From a module to an exported program (pt2): any batch size up to a largest one."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

_SOURCE_FACTS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")


def pt2_bytes(module: nn.Module, example: Tensor, max_batch: int) -> bytes:
    """``module`` as ``torch.export`` saves it, without the source paths that torch notes.

    Args:
        module: in evaluation mode, folded.
        example: an input of at least two rows.
        max_batch: the largest batch that the program takes.
    """
    batch = torch.export.Dim("batch", min=1, max=max_batch) if max_batch > 1 else None
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (example[:max_batch],), dynamic_shapes=(({0: batch} if batch else None),)
        )
    _strip(program)
    data = io.BytesIO()
    torch.export.save(program, data)
    return data.getvalue()


def read_pt2(data: bytes) -> Any:
    """The exported program in ``data``. Reading one can execute code: trust its source."""
    return torch.export.load(io.BytesIO(data))


def _strip(program: Any) -> None:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for fact in _SOURCE_FACTS:
                    node.meta.pop(fact, None)
