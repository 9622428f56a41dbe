"""The last step: nodes, manifest and files, packed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from opa_trt import __version__
from opa_trt.builder.parts import PIONEER, Parts, file_of
from opa_trt.bundle import (
    CANARY,
    PROFILE,
    EngineEntry,
    ImageSpec,
    Manifest,
    SegmentEntry,
    pack,
    pack_arrays,
)
from opa_trt.tree import FEATURES, IMAGES, LOGITS, Node, PlanEntry, Target


def pack_bundle(parts: Parts, out: Path) -> Manifest:
    """Write the bundle of a build whose stages are all done.

    Raises:
        BundleError: something that is no bundle stands at ``out``.
    """
    compiled = parts.found["compile"]
    files = {
        **{
            f"segments/{file_of(name, form)}": data
            for name, segment in parts.segments.items()
            for form, data in segment.forms.items()
        },
        **{f"engines/{name}": data for name, data in compiled.blobs.items()},
        PROFILE: pack_arrays(parts.found["fit"].arrays),
        CANARY: pack_arrays(parts.canary),
    }
    return pack(out, _manifest(parts), files)


def _manifest(parts: Parts) -> Manifest:
    """The manifest, its list of files still empty."""
    recipe, data = parts.recipe, parts.recipe.data
    compiled = parts.found["compile"].facts
    largest = recipe.compile.max_batch
    return Manifest(
        name=recipe.name,
        version=__version__,
        recipe=recipe.to_dict(),
        recipe_sha256=recipe.digest(),
        classes=parts.classes,
        images=ImageSpec(data.size, data.dtype, data.mean, data.std),
        nodes=tuple(_nodes(parts)),
        segments={
            name: SegmentEntry(
                s.inputs,
                s.outputs,
                s.content,
                {form: f"segments/{file_of(name, form)}" for form in s.forms},
            )
            for name, s in parts.segments.items()
        },
        engines=tuple(
            EngineEntry(entry["segment"], Target(**entry["target"]), entry["key"], entry["file"])
            for entry in compiled["engines"]
        ),
        backend=compiled["backend"],
        plan={
            name: tuple(PlanEntry(**row) for row in rows) for name, rows in compiled["plan"].items()
        },
        max_batch=largest,
        threads=parts.threads,
        buckets=tuple(sorted({min(bucket, largest) for bucket in recipe.measure.buckets})),
        files={},
        report={stage: {"line": f.line, **f.facts} for stage, f in parts.found.items()},
    )


def _nodes(parts: Parts) -> Iterator[Node]:
    """The pioneer, and the tails as its successors."""
    space, accuracy = parts.supernet.space, parts.found["measure"].facts["accuracy"]
    yield Node(
        PIONEER,
        PIONEER,
        IMAGES,
        (FEATURES, LOGITS),
        successors=tuple(parts.tail_names),
        resolution=parts.side,
        code=tuple(map(float, space.encode(parts.pioneer_arch))),
        macs=int(parts.found["pioneer"].facts["macs"]),
        accuracy=accuracy[PIONEER],
    )
    for name, arch in zip(parts.tail_names, parts.archs, strict=True):
        yield Node(
            name,
            name,
            FEATURES,
            (LOGITS,),
            resolution=parts.side,
            code=tuple(map(float, space.encode(arch))),
            macs=parts.cut.tail_macs(arch),
            accuracy=accuracy[name],
        )
