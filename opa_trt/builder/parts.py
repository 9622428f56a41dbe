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
from opa_trt.builder import pooling
from opa_trt.builder.canary import canary_arrays
from opa_trt.builder.chains import fit_chain
from opa_trt.builder.compiling import AUTO
from opa_trt.builder.deployment import PIONEER, Deployment
from opa_trt.builder.network import Cut, Pioneer, owners
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import source_of
from opa_trt.builder.work import Finding
from opa_trt.clock import Clock
from opa_trt.errors import RecipeError
from opa_trt.policies.thresholds import DOUBTS, Chain, chain_of
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, Supernet, load
from opa_trt.supernet.fold import fold
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.training.batches import Source
from opa_trt.training.data import Images, Splits
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

    @cached_property
    def source(self) -> Source:
        """How images become inputs."""
        return source_of(self.recipe)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.splits.train.classes

    @cached_property
    def choosing(self) -> Images:
        """The images that tails are chosen on: one half of those held out from training."""
        return self.splits.fit.select(np.arange(0, len(self.splits.fit), 2))

    @cached_property
    def fitting(self) -> Images:
        """The images that predictors are fitted on: the other half."""
        return self.splits.fit.select(np.arange(1, len(self.splits.fit), 2))

    @cached_property
    def supernet(self) -> Supernet:
        """The weights, checked against the recipe's space."""
        space = self.recipe.make_space(len(self.classes))
        return load(self.checkpoint, expected=space)

    @cached_property
    def cut(self) -> Cut:
        """Where pioneer and tails meet."""
        stages, total = self.recipe.pioneer.stages, len(self.supernet.space.slots)
        if stages >= total:
            message = f"pioneer.stages = {stages}."
            raise RecipeError(message, expected=f"fewer than the space's {total}.")
        if self.recipe.baselines.branchynet > (most := total - stages + 2):
            message = f"baselines.branchynet = {self.recipe.baselines.branchynet}."
            raise RecipeError(message, expected=f"at most {most}: the largest tail has no more.")
        return Cut(self.supernet, stages)

    @cached_property
    def pioneer_arch(self) -> Arch:
        """The pioneer's choices (what follows its stages is the smallest)."""
        space, wanted = self.supernet.space, self.recipe.pioneer
        side = wanted.resolution or space.resolutions[-1]
        whole = space.arch(
            resolution=side,
            depths=wanted.depth,
            kernel_sizes=wanted.kernel_size if space.kernel_choices else None,
            expand_ratios=wanted.expand_ratio,
        )
        return space.graft(whole, space.smallest(side), wanted.stages)

    @property
    def side(self) -> int:
        """The resolution that the network reads."""
        return self.pioneer_arch.resolution

    def assemble(self, trunk: nn.Sequential, head: nn.Sequential) -> Pioneer:
        """The pioneer's module, with the recipe's preprocessing in front."""
        data = self.recipe.data
        preprocess = Preprocess(
            data.size, self.side, data.mean, data.std, bytes_in=not data.float_images
        )
        return Pioneer(preprocess, trunk, head)

    def calibration(self, limit: int) -> list[Tensor]:
        """At most ``limit`` normalised training inputs, in calibration batches."""
        batch = self.recipe.calibrate.batch
        return list(
            self.source.inputs(self.splits.train, limit, batch, self.side, self.recipe.seed)
        )

    @cached_property
    def choosing_pool(self) -> tuple[pooling.Pixels, pooling.Ints, pooling.Ints]:
        """Pixels, labels and conditions that candidates are compared on."""
        recipe = self.recipe
        return pooling.draw(self.choosing, self.source, recipe.tails.images, recipe.seed)

    @cached_property
    def choosing_inputs(self) -> tuple[list[Tensor], Tensor]:
        """Inputs (in batches) and labels that candidates are compared on."""
        pixels, labels, _ = self.choosing_pool
        parts = torch.split(torch.from_numpy(pixels), self.recipe.calibrate.batch)
        inputs = [self.source.tensor(part.numpy(), self.side) for part in parts]
        return inputs, torch.from_numpy(labels)

    def example(self) -> Tensor:
        """Two images as the pioneer reads them."""
        return pooling.as_input(self.splits.train.pixels[:2].copy(), self.recipe.data.float_images)

    # --- from what stages found -----------------------------------------------------------------

    @cached_property
    def pioneer(self) -> Pioneer:
        """The calibrated pioneer with its trained exit head."""
        found = self.found["pioneer"]
        width = self.recipe.pioneer.head_width
        head = exit_head(int(found.facts["channels"]), width, len(self.classes))
        module = self.assemble(self.cut.trunk(self.pioneer_arch), head)
        module.load_state_dict({k: torch.from_numpy(v) for k, v in found.arrays.items()})
        return module.eval().requires_grad_(False)

    @cached_property
    def archs(self) -> list[Arch]:
        """The chosen tails' archs, by ascending MACs."""
        return [Arch.from_dict(values) for values in self.found["tails"].facts["archs"]]

    @cached_property
    def deployment(self) -> Deployment:
        """What is deployed, and where the archs of the systems beside ``opa`` come from."""
        layers = self.found["tails"].facts["layers"]
        front = [place for place, layer in enumerate(layers) if layer == 0]
        return Deployment(self.cut, self.pioneer_arch, self.archs, front, self.recipe.baselines)

    @property
    def tail_names(self) -> list[str]:
        """``tail1`` (fewest MACs) …"""
        return self.deployment.tail_names

    @property
    def nodes(self) -> list[str]:
        """Names of ``opa``'s nodes, the pioneer first."""
        return [PIONEER, *self.tail_names]

    @cached_property
    def tree(self) -> Tree:
        """Every system's nodes, parents first."""
        head_macs = {
            k: row["head_macs"] for k, row in self.found["calibrate"].facts["exits"].items()
        }
        return Tree(self.deployment.nodes(int(self.found["pioneer"].facts["macs"]), head_macs))

    @cached_property
    def owners(self) -> dict[str, Node]:
        """Every segment's first node, by the segment's name."""
        return owners(self.tree)

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every segment's calibrated module, by its name."""
        found, tails = self.found["calibrate"], {}
        for name, arch in zip(self.tail_names, self.archs, strict=True):
            tails[name] = self.cut.tail(arch)
            tails[name].load_state_dict(_below(f"{name}/", found.arrays.items()))
        heads = {name: self._head(name, row) for name, row in found.facts["exits"].items()}
        return self.deployment.modules(self.pioneer, tails, heads)

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
        images = self.segments[PIONEER].inputs[0]
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
