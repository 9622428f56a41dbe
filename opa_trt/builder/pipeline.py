"""A recipe becomes a bundle: the stages in order, each resumable."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opa_trt import __version__
from opa_trt.builder import compiling, pooling
from opa_trt.builder.fit import Records, draw_groups, fit_estimator, fit_predictor, report
from opa_trt.builder.fold import fold, parity
from opa_trt.builder.network import Cut, Pioneer, logits_macs, run_batches
from opa_trt.builder.packing import canary_arrays, make_manifest
from opa_trt.builder.recipe import Recipe
from opa_trt.builder.sources import load_splits, source_of
from opa_trt.builder.tails import candidates, choose, pareto_layers, tail_accuracies
from opa_trt.builder.trace import content, trace, trace_bytes
from opa_trt.builder.work import Finding, Work
from opa_trt.bundle import CANARY, PROFILE, Manifest, check_place, pack, pack_arrays
from opa_trt.clock import Clock, MonotonicClock
from opa_trt.errors import CheckpointError, RecipeError
from opa_trt.policies import Knowledge
from opa_trt.progress import Progress
from opa_trt.store import EngineStore
from opa_trt.supernet import Arch, Supernet, load_supernet
from opa_trt.supernet.calibration import calibrate
from opa_trt.supernet.preprocess import Preprocess
from opa_trt.training.data import Images, Splits
from opa_trt.training.exit_head import ExitHeadPlan, exit_head, train_exit_head
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, Segment, TensorSpec

log = logging.getLogger(__name__)

PIONEER = "pioneer"
STAGES = (
    "data",
    "supernet",
    "pioneer",
    "tails",
    "calibrate",
    "fold",
    "trace",
    "compile",
    "measure",
    "fit",
)
CANDIDATE_CALIBRATION = 600  # images; the chosen tails are calibrated again on all


def build(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    skip_bad_images: bool = False,
    progress: Progress | None = None,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> Manifest:
    """Turn a recipe into a bundle at ``out``.

    Each finished stage is kept in ``OUT.work`` beside it; a build that was stopped and is called
    again goes on after its last finished stage. The folder is deleted when the bundle is packed.

    Args:
        recipe: what to build; its checkpoint must exist.
        out: the bundle's folder; a bundle already there is replaced at the very end.
        data: the image folder, where the recipe reads one.
        skip_bad_images: leave out images that cannot be decoded.
        progress: hears of every stage.
        store: where this machine's engines and latencies are kept; the user's cache by default.
        clock: what tells the time while measuring.

    Returns:
        The bundle's manifest.

    Raises:
        OpaError: DataError, CheckpointError, RecipeError, BackendError …; nothing half-written
            is left behind.
    """
    check_place(out)
    progress = progress or Progress()
    progress.start("data")
    splits = load_splits(recipe, data, skip_bad_images=skip_bad_images, progress=progress)
    if (threads := recipe.compile.threads or os.cpu_count() or 1) != torch.get_num_threads():
        torch.set_num_threads(threads)
    building = Building(
        recipe,
        out,
        splits,
        progress,
        store or EngineStore(),
        clock or MonotonicClock(),
        threads,
    )
    return building.run()


@dataclass
class Building:
    """One build: what the stages share. Each stage is a method; findings are its results."""

    recipe: Recipe
    out: Path
    splits: Splits
    progress: Progress
    store: EngineStore
    clock: Clock
    threads: int
    found: dict[str, Finding] = field(default_factory=dict)

    def run(self) -> Manifest:
        """Run (or take up) every stage, then pack."""
        work = Work(self.out.with_name(f"{self.out.name}.work"), self.key)
        for stage in STAGES:
            self._stage(stage, work)
        self.progress.start("pack")
        manifest = self._pack()
        files = len(manifest.files) + 1
        size = sum(entry.size for entry in manifest.files.values())
        self.progress.finish("pack", f"{self.out}, {size / 1e6:.1f} MB, {files} files")
        work.discard()
        return manifest

    @cached_property
    def key(self) -> str:
        """Hash of all that the build depends on: recipe, images, weights, threads, our version."""
        checkpoint = self.checkpoint.read_bytes() if self.checkpoint.is_file() else b""
        facts = [
            self.recipe.digest(),
            *(images.digest() for images in (self.splits.train, self.splits.fit, self.splits.test)),
            hashlib.sha256(checkpoint).hexdigest(),
            str(self.threads),
            __version__,
            torch.__version__,
        ]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()

    @property
    def checkpoint(self) -> Path:
        """The weights' file.

        Raises:
            CheckpointError: the recipe names none.
        """
        path = self.recipe.checkpoint_path()
        if path is None:
            message = f"recipe {self.recipe.name} names no checkpoint."
            raise CheckpointError(
                message,
                expected="weights from `opa-trt train`.",
                remedy="add --checkpoint FILE, or checkpoint = … to the recipe.",
            )
        return path

    def _stage(self, stage: str, work: Work) -> None:
        known = work.load(stage)
        self.progress.start(stage)
        if known is None:
            run: Callable[[], Finding] = getattr(self, f"_{stage}")
            known = run()
            work.save(stage, known)
            line = known.line
        else:
            line = f"{known.line} (found before)"
        self.found[stage] = known
        self.progress.finish(stage, line)

    # --- what stages share, made again where a build goes on ------------------------------------

    @cached_property
    def supernet(self) -> Supernet:
        """The weights, checked against the recipe's space."""
        space = self.recipe.make_space(len(self.splits.train.classes))
        return load_supernet(self.checkpoint, expected=space)

    @cached_property
    def cut(self) -> Cut:
        """Where pioneer and tails meet."""
        stages = self.recipe.pioneer.stages
        total = len(self.supernet.space.slots)
        if stages >= total:
            message = f"pioneer.stages = {stages}."
            raise RecipeError(message, expected=f"fewer than the space's {total}.")
        return Cut(self.supernet, stages)

    @cached_property
    def pioneer_arch(self) -> Arch:
        """The pioneer's choices (what follows its stages is the smallest)."""
        space, wanted = self.supernet.space, self.recipe.pioneer
        side = wanted.resolution or space.resolutions[-1]
        whole = space.arch(
            resolution=side,
            depths=wanted.depth,
            kernel_sizes=wanted.kernel_size,
            expand_ratios=wanted.expand_ratio,
        )
        return space.graft(whole, space.smallest(side), wanted.stages)

    @cached_property
    def choosing(self) -> Images:
        """The images that tails are chosen on: one half of those held out from training."""
        return self.splits.fit.select(np.arange(0, len(self.splits.fit), 2))

    @cached_property
    def fitting(self) -> Images:
        """The images that predictors are fitted on: the other half."""
        return self.splits.fit.select(np.arange(1, len(self.splits.fit), 2))

    @cached_property
    def pioneer(self) -> Pioneer:
        """The calibrated pioneer with its trained exit head."""
        data = self.recipe.data
        trunk = self.cut.trunk(self.pioneer_arch)
        state = {k: torch.from_numpy(v) for k, v in self.found["pioneer"].arrays.items()}
        channels = int(self.found["pioneer"].facts["channels"])
        head = exit_head(channels, self.recipe.pioneer.head_width, len(self.splits.train.classes))
        module = Pioneer(
            Preprocess(
                data.size,
                self.pioneer_arch.resolution,
                data.mean,
                data.std,
                bytes_in=not data.float_images,
            ),
            trunk,
            head,
        )
        module.load_state_dict(state)
        return module.eval().requires_grad_(False)

    @cached_property
    def archs(self) -> list[Arch]:
        """The chosen tails' archs, by ascending MACs."""
        return [Arch.from_dict(values) for values in self.found["tails"].facts["archs"]]

    @cached_property
    def tails(self) -> list[nn.Sequential]:
        """The calibrated tails."""
        arrays = self.found["calibrate"].arrays
        made = []
        for name, arch in zip(self.tail_names, self.archs, strict=True):
            tail = self.cut.tail(arch)
            prefix = f"{name}/"
            tail.load_state_dict(
                {
                    key[len(prefix) :]: torch.from_numpy(value)
                    for key, value in arrays.items()
                    if key.startswith(prefix)
                }
            )
            made.append(tail)
        return made

    @property
    def tail_names(self) -> list[str]:
        """``tail1`` (fewest MACs) …"""
        return [f"tail{i + 1}" for i in range(len(self.archs))]

    @cached_property
    def folded(self) -> dict[str, nn.Module]:
        """Every segment's module with its batch norm folded, by node name."""
        modules: dict[str, nn.Module] = {PIONEER: self.pioneer}
        modules |= zip(self.tail_names, self.tails, strict=True)
        return {name: fold(module) for name, module in modules.items()}

    @cached_property
    def segments(self) -> dict[str, Segment]:
        """Every segment with its portable form."""
        facts, blobs = self.found["trace"].facts, self.found["trace"].blobs
        spec = TensorSpec(FEATURES, tuple(facts["features"]))
        logits = TensorSpec(LOGITS, (len(self.splits.train.classes),))
        size = self.recipe.data.size
        dtype = "float32" if self.recipe.data.float_images else "uint8"
        images = TensorSpec(IMAGES, (3, size, size), dtype)
        return {
            name: Segment(
                name,
                inputs=(images,) if name == PIONEER else (spec,),
                outputs=(spec, logits) if name == PIONEER else (logits,),
                forms={"torchscript": blobs[f"{name}.pt"]},
                content=facts["content"][name],
            )
            for name in [PIONEER, *self.tail_names]
        }

    @cached_property
    def canary(self) -> dict[str, np.ndarray[Any, Any]]:
        """Seeded noise and what every folded module makes of it."""
        batches = (1, self.recipe.compile.max_batch)
        return canary_arrays(
            self.folded, PIONEER, self.segments[PIONEER].inputs[0], batches, self.recipe.seed
        )

    def _inputs(self, images: Images, limit: int) -> list[Tensor]:
        """Normalised inputs at the pioneer's resolution, in calibration batches."""
        batch = self.recipe.calibrate.batch
        source, side = source_of(self.recipe), self.pioneer_arch.resolution
        return list(source.inputs(images, limit, batch, side, self.recipe.seed))

    # --- the stages -----------------------------------------------------------------------------

    def _data(self) -> Finding:
        splits = self.splits
        counts = {"train": len(splits.train), "fit": len(splits.fit), "test": len(splits.test)}
        skipped = f", {len(splits.skipped)} unreadable ones left out" if splits.skipped else ""
        line = (
            f"{counts['train']:,} to train and calibrate, {counts['fit']:,} to choose and fit, "
            f"{counts['test']:,} held out, {len(splits.train.classes)} classes{skipped}"
        )
        return Finding(line, {**counts, "skipped": [str(path) for path in splits.skipped]})

    def _supernet(self) -> Finding:
        space = self.supernet.space
        weights = sum(parameter.numel() for parameter in self.supernet.parameters())
        ends = [space.macs(space.smallest(space.resolutions[-1])), space.macs(space.largest())]
        line = (
            f"{self.checkpoint.name}, {space.name} space, {weights / 1e6:.2f} M weights, "
            f"{ends[0] / 1e6:.1f} to {ends[1] / 1e6:.1f} M MACs"
        )
        return Finding(line, {"weights": weights, "macs": ends})

    def _pioneer(self) -> Finding:
        recipe = self.recipe
        trunk = self.cut.trunk(self.pioneer_arch)
        calibrate(trunk, self._inputs(self.splits.train, recipe.calibrate.images))
        images, labels = pooling.head_images(self.splits.train, source_of(recipe), recipe)
        side = self.pioneer_arch.resolution
        batches = [source_of(recipe).tensor(part, side) for part in images]
        features = torch.cat(run_batches(trunk, batches))
        largest = self.supernet.extract(self.supernet.space.largest(side))
        calibrate(largest, self._inputs(self.splits.train, CANDIDATE_CALIBRATION))
        soft = torch.cat(run_batches(largest, batches)).softmax(1)
        head = train_exit_head(
            features,
            labels,
            soft,
            ExitHeadPlan(
                recipe.pioneer.head_width, recipe.pioneer.epochs, recipe.pioneer.learning_rate
            ),
            seed=recipe.seed,
        )
        macs = self.cut.trunk_macs(self.pioneer_arch) + logits_macs(head, features)
        accuracy = self._choosing_accuracy(nn.Sequential(trunk, head))
        data = recipe.data
        module = Pioneer(
            Preprocess(data.size, side, data.mean, data.std, bytes_in=not data.float_images),
            trunk,
            head,
        )
        line = (
            f"stages 1 to {self.cut.stages} ({self.pioneer_arch}), {macs / 1e6:.2f} M MACs, "
            f"exit head {accuracy:.1%}"
        )
        facts = {"macs": macs, "channels": features.shape[1], "accuracy": accuracy}
        return Finding(line, facts, {k: v.numpy() for k, v in module.state_dict().items()})

    @torch.no_grad()
    def _choosing_accuracy(self, module: nn.Module) -> float:
        inputs, labels = self._choosing_inputs
        logits = torch.cat(run_batches(module, inputs))
        return float((logits.argmax(1) == labels).float().mean())

    @cached_property
    def _choosing_inputs(self) -> tuple[list[Tensor], Tensor]:
        """Inputs and labels that candidates are compared on."""
        recipe, source = self.recipe, source_of(self.recipe)
        images, labels, _ = pooling.draw(self.choosing, source, recipe.tails.images, recipe.seed)
        side = self.pioneer_arch.resolution
        parts = torch.split(torch.from_numpy(images), recipe.calibrate.batch)
        return [source.tensor(part.numpy(), side) for part in parts], torch.from_numpy(labels)

    def _tails(self) -> Finding:
        recipe, cut = self.recipe, self.cut
        archs = candidates(cut, self.pioneer_arch, recipe.tails.candidates, recipe.seed)
        inputs, labels = self._choosing_inputs
        trunk = self.pioneer.trunk
        calibration = self._inputs(self.splits.train, CANDIDATE_CALIBRATION)
        self.progress.start("tails", len(archs))
        accuracy = tail_accuracies(
            cut,
            archs,
            run_batches(trunk, calibration),
            run_batches(trunk, inputs),
            labels,
            self.progress,
        )
        macs = [cut.tail_macs(arch) for arch in archs]
        chosen = choose(macs, accuracy, recipe.tails.count)
        layers = pareto_layers(macs, accuracy)
        front = sum(layers[i] == 0 for i in chosen)
        trunk_macs = cut.trunk_macs(self.pioneer_arch)
        rest = f", {len(chosen) - front} from the next ones" if front < len(chosen) else ""
        line = (
            f"{len(chosen)} of {len(archs)} candidates, {front} on the Pareto front{rest}, "
            f"{(trunk_macs + macs[chosen[0]]) / 1e6:.1f} to "
            f"{(trunk_macs + macs[chosen[-1]]) / 1e6:.1f} M MACs"
        )
        facts = {
            "archs": [archs[i].to_dict() for i in chosen],
            "layers": [layers[i] for i in chosen],
            "candidates": [
                {"arch": str(arch), "tail_macs": m, "accuracy": a}
                for arch, m, a in zip(archs, macs, accuracy, strict=True)
            ],
        }
        return Finding(line, facts)

    def _calibrate(self) -> Finding:
        images = self.recipe.calibrate.images
        inputs = self._inputs(self.splits.train, images)
        features = run_batches(self.pioneer.trunk, inputs)
        arrays: dict[str, Any] = {}
        self.progress.start("calibrate", len(self.archs))
        for done, (name, arch) in enumerate(zip(self.tail_names, self.archs, strict=True), 1):
            tail = self.cut.calibrated_tail(arch, features)
            arrays |= {f"{name}/{key}": value.numpy() for key, value in tail.state_dict().items()}
            self.progress.advance(done, name)
        seen = sum(len(batch) for batch in inputs)
        line = f"{seen:,} images, batch norm of {len(self.archs) + 1} nodes"
        facts = {"images": seen, "data": self.splits.train.digest()}
        return Finding(line, facts, arrays)

    def _fold(self) -> Finding:
        example = self._example()
        features = self.pioneer(example)[0]
        found = {PIONEER: parity(PIONEER, self.folded[PIONEER], self.pioneer, example)}
        for name, tail in zip(self.tail_names, self.tails, strict=True):
            found[name] = parity(name, self.folded[name], tail, features)
        return Finding(
            f"{len(found)} segments without batch norm, parity {max(found.values()):.0e}",
            {"parity": found},
        )

    def _example(self) -> Tensor:
        """Two images as the pioneer reads them."""
        pixels = np.ascontiguousarray(self.splits.train.pixels[:2])
        tensor = torch.from_numpy(pixels.copy())
        return tensor.float() / 255 if self.recipe.data.float_images else tensor

    def _trace(self) -> Finding:
        images = self._example()
        features = self.folded[PIONEER](images)[0]
        blobs, contents, parities = {}, {}, {}
        self.progress.start("trace", len(self.folded))
        for done, (name, module) in enumerate(self.folded.items(), 1):
            example = images if name == PIONEER else features
            traced = trace(module, example)
            parities[name] = parity(name, traced, module, example)
            blobs[f"{name}.pt"], contents[name] = trace_bytes(traced), content(traced)
            self.progress.advance(done, name)
        size = sum(map(len, blobs.values()))
        line = f"{len(blobs)} segments to TorchScript, {size / 1e6:.1f} MB, "
        facts = {"content": contents, "parity": parities, "features": list(features.shape[1:])}
        return Finding(f"{line}parity {max(parities.values()):.0e}", facts, blobs=blobs)

    def _compile(self) -> Finding:
        done = compiling.compile_all(
            self.segments,
            self.canary,
            self.recipe.compile,
            self.threads,
            self.clock,
            self.progress,
            (PIONEER, self.tail_names[-1]),
        )
        names = [name for name in done.timings if name != done.backend]
        among = f" (fastest of {', '.join([done.backend, *names])})" if names else ""
        line = f"{done.backend} {done.version}{among}, {len(self.segments)} engines"
        facts = {"backend": done.backend, "engines": done.entries, "timings_ms": done.timings}
        return Finding(f"{line}, canary {done.worst:.0e}", facts, blobs=done.blobs)

    def _measure(self) -> Finding:
        recipe = self.recipe
        runner = compiling.Runner(
            self.segments, self.found["compile"], self.canary, self.store, self.clock
        )
        nodes = [PIONEER, *self.tail_names]
        latency = runner.profiles(recipe.measure.buckets, recipe.measure.seconds)
        arrays: dict[str, Any] = {}
        for part, images in (("fit", self.fitting), ("test", self.splits.test)):
            pool, labels, condition = pooling.draw(
                images, source_of(recipe), recipe.fit.images, recipe.seed + 1
            )
            answers = runner.answers(pooling.as_input(pool, recipe.data.float_images))
            arrays |= {
                f"{part}/condition": condition,
                f"{part}/logits": answers[PIONEER],
                **{f"{part}/right/{n}": a.argmax(1) == labels for n, a in answers.items()},
            }
        runner.close()
        accuracy = {name: float(arrays[f"fit/right/{name}"].mean()) for name in nodes}
        ends = [accuracy[self.tail_names[0]], accuracy[self.tail_names[-1]]]
        line = (
            f"{len(nodes)} nodes × {len(recipe.measure.buckets)} batch buckets; "
            f"pioneer {accuracy[PIONEER]:.1%}, tails {ends[0]:.1%} to {ends[1]:.1%}"
        )
        return Finding(line, {"accuracy": accuracy, "latency": latency}, arrays)

    def _fit(self) -> Finding:
        recipe, names = self.recipe, self.tail_names
        space = self.supernet.space
        codes = np.stack([space.encode(arch) for arch in self.archs])
        fitting, held_out = self._records("fit"), self._records("test")
        estimator = fit_estimator(fitting, PIONEER)
        size, count = recipe.fit.group_size, recipe.fit.groups

        def groups(records: Records, number: int, seed: int) -> Any:
            return draw_groups(records, names, estimator, groups=number, size=size, seed=seed)

        predictor = fit_predictor(groups(fitting, count, recipe.seed), codes, seed=recipe.seed)
        held_groups = groups(held_out, max(50, count // 4), recipe.seed + 1)
        facts = report(estimator, predictor, held_out, held_groups, codes, PIONEER)
        line = (
            f"held out: estimator {facts['judgement']:.1%} right "
            f"(always the commoner: {facts['judgement_base']:.1%}), "
            f"predictor RMSE {facts['rmse']:.3f}, R² {facts['r2']:.2f}"
        )
        knowledge = Knowledge(estimator, predictor, {})
        return Finding(line, facts, knowledge.to_arrays())

    def _records(self, part: str) -> Records:
        arrays = self.found["measure"].arrays
        nodes = [PIONEER, *self.tail_names]
        return Records(
            arrays[f"{part}/logits"],
            {name: arrays[f"{part}/right/{name}"] for name in nodes},
            arrays[f"{part}/condition"],
        )

    # --- the end --------------------------------------------------------------------------------

    def _nodes(self) -> tuple[Node, ...]:
        space = self.supernet.space
        accuracy = self.found["measure"].facts["accuracy"]
        side = self.pioneer_arch.resolution
        first = Node(
            PIONEER,
            PIONEER,
            IMAGES,
            (FEATURES, LOGITS),
            successors=tuple(self.tail_names),
            resolution=side,
            code=tuple(map(float, space.encode(self.pioneer_arch))),
            macs=int(self.found["pioneer"].facts["macs"]),
            accuracy=accuracy[PIONEER],
        )
        tails = (
            Node(
                name,
                name,
                FEATURES,
                (LOGITS,),
                resolution=side,
                code=tuple(map(float, space.encode(arch))),
                macs=self.cut.tail_macs(arch),
                accuracy=accuracy[name],
            )
            for name, arch in zip(self.tail_names, self.archs, strict=True)
        )
        return (first, *tails)

    def _pack(self) -> Manifest:
        segments = self.segments
        forms = {f"segments/{name}.pt": s.forms["torchscript"] for name, s in segments.items()}
        compiled = self.found["compile"]
        files = {
            **forms,
            **{f"engines/{name}": data for name, data in compiled.blobs.items()},
            PROFILE: pack_arrays(self.found["fit"].arrays),
            CANARY: pack_arrays(self.canary),
        }
        manifest = make_manifest(
            self.recipe,
            self.splits.train.classes,
            self._nodes(),
            segments,
            compiled.facts,
            self.threads,
            report={stage: {"line": f.line, **f.facts} for stage, f in self.found.items()},
        )
        return pack(self.out, replace(manifest, version=__version__), files)
