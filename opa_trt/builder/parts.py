"""What the stages of a build share, made again from their findings where a build goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opa_trt.backends import backend
from opa_trt.builder.canary import canary_arrays
from opa_trt.builder.chains import fit_chain
from opa_trt.builder.compiling import AUTO
from opa_trt.builder.deployment import Deployment
from opa_trt.builder.entries import Entry, Family, Shape, make_entries
from opa_trt.builder.network import Cut, Pioneer, owners
from opa_trt.builder.pooling import Pools
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.errors import RecipeError
from opa_trt.policies.thresholds import DOUBTS, Chain, chain_of
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, Supernet, load
from opa_trt.supernet.fold import fold
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.training.data import Splits
from opa_trt.training.exit_head import exit_head
from opa_trt.tree import (
    BRANCHYNET,
    CASCADE,
    FEATURES,
    IMAGES,
    LOGITS,
    ONNX,
    PT2,
    TORCHSCRIPT,
    Node,
    Segment,
    TensorSpec,
    Tree,
)

SUFFIXES = {TORCHSCRIPT: "pt", ONNX: "onnx", PT2: "pt2"}


def file_of(segment: str, form: str) -> str:
    """The name of the file that holds a segment's portable form."""
    return f"{segment}.{SUFFIXES[form]}"


@dataclass
class Parts:
    """One build: its recipe, its images, what the stages have found, and what follows from it."""

    recipe: Recipe
    splits: Splits
    progress: Progress
    store: EngineStore
    clock: Clock
    threads: int
    found: dict[str, Finding] = field(default_factory=dict)

    # --- from recipe and images -----------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The weights' file.

        Raises:
            CheckpointError: the recipe names none.
        """
        return self.recipe.named_checkpoint()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.splits.train.classes

    @cached_property
    def pools(self) -> Pools:
        """What is drawn from the images."""
        return Pools(self.recipe, self.splits)

    @cached_property
    def supernet(self) -> Supernet:
        """The weights, checked against the recipe's space."""
        space = self.recipe.make_space(len(self.classes))
        return load(self.checkpoint, expected=space)

    @cached_property
    def shape(self) -> Shape:
        """What every pioneer is made of: what the recipe says, or else what the study chose."""
        if self.recipe.pioneer.stages:
            return Shape.of(self.recipe.pioneer)
        return Shape(**self.found["study"].facts["choice"])

    @cached_property
    def cut(self) -> Cut:
        """Where pioneers and tails meet.

        Raises:
            RecipeError: after the last stage, or with fewer stages left than exits asked for.
        """
        stages, total = self.shape.stages, len(self.supernet.space.slots)
        if stages >= total:
            message = f"pioneer.stages = {stages}."
            raise RecipeError(message, expected=f"fewer than the space's {total}.")
        if self.recipe.baselines.branchynet > (most := total - stages + 2):
            message = f"baselines.branchynet = {self.recipe.baselines.branchynet}."
            raise RecipeError(message, expected=f"at most {most}: the largest tail has no more.")
        return Cut(self.supernet, stages)

    @cached_property
    def entries(self) -> list[Entry]:
        """A pioneer for each resolution, ascending.

        Raises:
            RecipeError, ArchError: as ``make_entries`` says.
        """
        return make_entries(self.supernet.space, self.shape, self.recipe.pioneer.resolutions)

    def assemble(self, trunk: nn.Sequential, head: nn.Sequential, side: int) -> Pioneer:
        """A pioneer's module, with the recipe's preprocessing in front."""
        data = self.recipe.data
        preprocess = Preprocess(
            data.size, side, data.mean, data.std, bytes_in=not data.float_images
        )
        return Pioneer(preprocess, trunk, head)

    # --- from what stages found -----------------------------------------------------------------

    @cached_property
    def pioneers(self) -> dict[str, Pioneer]:
        """Every entry's calibrated pioneer with its trained exit head, by name."""
        found, width, made = self.found["pioneer"], self.recipe.pioneer.head_width, {}
        for entry in self.entries:
            channels = int(found.facts["entries"][entry.name]["channels"])
            head = exit_head(channels, width, len(self.classes))
            module = self.assemble(self.cut.trunk(entry.pioneer), head, entry.side)
            module.load_state_dict(_below(f"{entry.name}/", found.arrays.items()))
            made[entry.name] = module.eval().requires_grad_(False)
        return made

    @cached_property
    def pioneer_macs(self) -> dict[str, int]:
        """Of every pioneer, its exit head included."""
        rows = self.found["pioneer"].facts["entries"]
        return {name: int(row["macs"]) for name, row in rows.items()}

    @cached_property
    def families(self) -> list[Family]:
        """Every entry with its chosen tails."""
        archs = self.found["tails"].facts["archs"]
        return [Family(e, tuple(map(Arch.from_dict, archs[e.name]))) for e in self.entries]

    @cached_property
    def deployment(self) -> Deployment:
        """What is deployed, and where the archs of the systems beside ``opa`` come from."""
        front = self.found["tails"].facts["front"]
        return Deployment(self.cut, self.families, front, self.recipe.baselines)

    @cached_property
    def tree(self) -> Tree:
        """Every system's nodes, parents first."""
        exits = self.found["calibrate"].facts["exits"]
        head_macs = {name: row["head_macs"] for name, row in exits.items()}
        return Tree(self.deployment.nodes(self.pioneer_macs, head_macs))

    @cached_property
    def owners(self) -> dict[str, Node]:
        """Every segment's first node, by the segment's name."""
        return owners(self.tree)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every segment's calibrated module, by its name."""
        found, tails = self.found["calibrate"], {}
        for name, (_, arch) in self.deployment.tails.items():
            tails[name] = self.cut.tail(arch)
            tails[name].load_state_dict(_below(f"{name}/", found.arrays.items()))
        heads = {name: self._head(name, row) for name, row in found.facts["exits"].items()}
        return self.deployment.modules(self.pioneers, tails, heads)

    def _head(self, exit: str, facts: Mapping[str, Any]) -> nn.Sequential:
        width = self.recipe.pioneer.head_width
        head = exit_head(int(facts["channels"]), width, len(self.classes)).eval()
        head.load_state_dict(_below(f"{exit}/", self.found["calibrate"].arrays.items()))
        return head.requires_grad_(False)

    @cached_property
    def folded(self) -> dict[str, nn.Module]:
        """Every segment's module with its batch norm folded, by the segment's name."""
        return {name: fold(module) for name, module in self.modules.items()}

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """Every segment with its portable forms."""
        traced = self.found["trace"]
        made: dict[str, Segment] = {}
        for name, node in self.owners.items():
            parent = self.tree.parents.get(node.name)
            reads = self._spec(node.source, self.tree[parent].segment if parent else name)
            made[name] = Segment(
                name,
                inputs=(reads,),
                outputs=tuple(self._spec(output, name) for output in node.outputs),
                forms={form: traced.blobs[file_of(name, form)] for form in self.forms},
                content=traced.facts["content"][name],
            )
        return made

    def _spec(self, tensor: str, segment: str) -> TensorSpec:
        """Of images, of logits, or of the features that a segment gives."""
        data = self.recipe.data
        if tensor == IMAGES:
            return TensorSpec(IMAGES, (3, data.size, data.size), data.dtype)
        if tensor == LOGITS:
            return TensorSpec(LOGITS, (len(self.classes),))
        return TensorSpec(FEATURES, tuple(self.found["trace"].facts["features"][segment]))

    @cached_property
    def forms(self) -> tuple[str, ...]:
        """The portable forms that the bundle gets: pt2 only for a named backend that needs it."""
        named = [backend(name) for name in self.recipe.compile.backends if name != AUTO]
        needed = any(vendor.forms and vendor.forms[0] == PT2 for vendor in named)
        return (TORCHSCRIPT, ONNX, PT2) if needed else (TORCHSCRIPT, ONNX)

    @cached_property
    def canary(self) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded noise and what every folded module makes of it."""
        batches = (1, self.recipe.compile.max_batch)
        images = self._spec(IMAGES, "")
        return canary_arrays(self.tree, self.folded, images, batches, self.recipe.seed)

    @cached_property
    def chains(self) -> dict[str, Chain]:
        """The thresholds that every chain of exits may take, by its system."""
        arrays, found = self.found["measure"].arrays, {}
        for system in (CASCADE, BRANCHYNET):
            nodes = chain_of(self.tree, system)
            if nodes:
                right = np.stack([arrays[f"fit/right/{node.name}"] for node in nodes])
                doubts = [DOUBTS[system](arrays[f"fit/logits/{n.name}"]) for n in nodes[:-1]]
                found[system] = fit_chain(np.stack(doubts), right, [n.macs for n in nodes])
        return found


def _below(prefix: str, arrays: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """The arrays whose names start with ``prefix``, without it, as tensors."""
    return {
        key[len(prefix) :]: torch.from_numpy(value)
        for key, value in arrays
        if key.startswith(prefix)
    }
