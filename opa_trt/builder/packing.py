"""The last step: nodes, manifest and files, packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from opa_trt import __version__
from opa_trt.builder.parts import Parts, file_of
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
from opa_trt.policies.thresholds import chains_to_arrays
from opa_trt.tree import PlanEntry, Target


def pack_bundle(parts: Parts, out: Path) -> Manifest:
    """Write the bundle of a build whose stages are all done.

    Raises:
        BundleError: something that is no bundle stands at ``out``.
    """
    compiled = parts.compiled
    files = {
        **{
            f"segments/{file_of(name, form)}": data
            for name, segment in parts.deployed.items()
            for form, data in segment.forms.items()
        },
        **{f"engines/{name}": data for name, data in compiled.blobs.items()},
        PROFILE: pack_arrays({**parts.found["fit"].arrays, **chains_to_arrays(parts.chains)}),
        CANARY: pack_arrays(parts.references.canary),
    }
    return pack(out, _manifest(parts), files)


def _manifest(parts: Parts) -> Manifest:
    """The manifest, its list of files still empty."""
    recipe, data = parts.recipe, parts.recipe.data
    compiled = parts.compiled.facts
    accuracy = parts.found["measure"].facts["accuracy"]
    largest = recipe.compile.max_batch
    return Manifest(
        name=recipe.name,
        version=__version__,
        recipe=recipe.to_dict(),
        recipe_sha256=recipe.digest(),
        classes=parts.classes,
        images=ImageSpec(data.size, data.dtype, data.mean, data.std),
        nodes=tuple(
            replace(n, accuracy=accuracy.get(n.name, 0.0)) for n in parts.tree.nodes.values()
        ),
        segments={
            name: SegmentEntry(
                s.inputs,
                s.outputs,
                s.content,
                {form: f"segments/{file_of(name, form)}" for form in s.forms},
            )
            for name, s in parts.deployed.items()
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
