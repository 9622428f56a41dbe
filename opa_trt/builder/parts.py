"""What the stages of a build share, made again from their findings where a build goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from opa_trt.backends import backend
from opa_trt.builder.branches import Branch, branches_of
from opa_trt.builder.canary import canary_arrays
from opa_trt.builder.chains import fit_chain
from opa_trt.builder.compiling import AUTO, References
from opa_trt.builder.network import owners
from opa_trt.builder.pooling import Pools
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.policies.thresholds import DOUBTS, Chain, chain_of
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
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
    Segment,
    TensorSpec,
    Tree,
)

SUFFIXES = {TORCHSCRIPT: "pt", ONNX: "onnx", PT2: "pt2"}


def file_of(segment: str, form: str) -> str:
    """The name of the file that holds a segment's portable form."""
    return f"{segment}.{SUFFIXES[form]}"


@dataclass
class Parts(ABC):
    """One build: its recipe, its images, what the stages have found, and what follows from it.

    What follows from nodes and their modules is here; which nodes there are, and what they
    compute, is said for each kind of network.
    """

    recipe: Recipe
    splits: Splits
    progress: Progress
    store: EngineStore
    clock: Clock
    threads: int
    found: dict[str, Finding] = field(default_factory=dict)

    # --- said for each kind of network ----------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Tell what cannot be built before any stage has run.

        Raises:
            OpaError: says what.
        """

    @property
    @abstractmethod
    def weight_files(self) -> tuple[Path, ...]:
        """The files that the network's weights are read from."""

    @property
    @abstractmethod
    def tree(self) -> Tree:
        """Every deployed node, parents first."""

    @property
    def covering(self) -> Tree:
        """A tree that has every segment that is compiled: more than are deployed, where latency
        decides which are."""
        return self.tree

    @property
    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Every compiled segment's calibrated module, by its name."""

    @abstractmethod
    def fold(self, module: nn.Module) -> nn.Module:
        """A module with its batch norm folded away."""

    @property
    @abstractmethod
    def telling(self) -> tuple[str, ...]:
        """The segments on which hopeless backends are told."""

    # --- from recipe and images -----------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.splits.train.classes

    @cached_property
    def pools(self) -> Pools:
        """What is drawn from the images."""
        return Pools(self.recipe, self.splits)

    def preprocess(self, side: int) -> Preprocess:
        """From images as the recipe has them to what a network reads."""
        data = self.recipe.data
        return Preprocess(data.size, side, data.mean, data.std, bytes_in=not data.float_images)

    # --- from what stages found -----------------------------------------------------------------

    @cached_property
    def branches(self) -> list[Branch]:
        """``opa``'s entries, and the answers below each."""
        return branches_of(self.tree)

    @cached_property
    def folded(self) -> dict[str, nn.Module]:
        """Every compiled segment's module with its batch norm folded, by the segment's name."""
        return {name: self.fold(module) for name, module in self.modules.items()}

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """Every compiled segment with its portable forms."""
        traced, tree = self.found["trace"], self.covering
        made: dict[str, Segment] = {}
        for name, node in owners(tree).items():
            parent = tree.parents.get(node.name)
            reads = self._spec(node.source, tree[parent].segment if parent else name)
            made[name] = Segment(
                name,
                inputs=(reads,),
                outputs=tuple(self._spec(output, name) for output in node.outputs),
                forms={form: traced.blobs[file_of(name, form)] for form in self.forms},
                content=traced.facts["content"][name],
            )
        return made

    @cached_property
    def deployed(self) -> dict[str, Segment]:
        """Those segments that the tree has."""
        return {name: self.segments[name] for name in owners(self.tree)}

    @cached_property
    def compiled(self) -> Finding:
        """What was compiled, of the deployed segments."""
        found = self.found["compile"]
        entries = [row for row in found.facts["engines"] if row["segment"] in self.deployed]
        plan = {name: found.facts["plan"][name] for name in self.deployed}
        files = [row["file"].removeprefix("engines/") for row in entries]
        facts = {**found.facts, "engines": entries, "plan": plan}
        return replace(found, facts=facts, blobs={name: found.blobs[name] for name in files})

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
    def references(self) -> References:
        """Seeded noise, and what every folded module makes of it in the deployed tree."""
        return self.references_of(self.tree)

    @property
    def covering_references(self) -> References:
        """The same in the tree that has every compiled segment."""
        return self.references

    def references_of(self, tree: Tree) -> References:
        """The same in any tree of compiled segments."""
        batches = (1, self.recipe.compile.max_batch)
        images = self._spec(IMAGES, "")
        return References(tree, canary_arrays(tree, self.folded, images, batches, self.recipe.seed))

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

    def exit_head(self, stage: str, name: str, channels: int) -> nn.Sequential:
        """The exit head whose weights a stage found as ``NAME/…``."""
        head = exit_head(channels, self.recipe.pioneer.head_width, len(self.classes)).eval()
        head.load_state_dict(below(f"{name}/", self.found[stage].arrays.items()))
        return head.requires_grad_(False)


def above(name: str, module: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """A module's arrays as ``NAME/…``; ``below`` finds them again."""
    return {f"{name}/{key}": value.numpy() for key, value in module.state_dict().items()}


def below(prefix: str, arrays: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """The arrays whose names start with ``prefix``, without it, as tensors."""
    return {
        key[len(prefix) :]: torch.from_numpy(value)
        for key, value in arrays
        if key.startswith(prefix)
    }
