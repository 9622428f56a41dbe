"""Every backend on every device and at every precision, with the little network compiled for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opa_trt.backends import Backend, Engine, backend, backend_names
from opa_trt.device import CPU, CUDA
from opa_trt.device import device as device_named
from opa_trt.runtime.canary import verify
from opa_trt.supernet.pt2_form import pt2_bytes
from opa_trt.tree import FEATURES, IMAGES, PT2, Segment, Tree

MAX_BATCH = 8
REQUIRED = ("openvino", "onnxruntime", "inductor", "torchscript", "null")  # what CI must have
Pt2 = Callable[[str], bytes]


def labels() -> Iterator[tuple[Backend, str]]:
    """Every backend on each of its devices, at each of its precisions."""
    for name in backend_names():
        for device in backend(name).devices:
            made = backend(f"{name}:{device}") if device != CPU else backend(name)
            yield from ((made, precision) for precision in made.precisions)


def parameters(*, slow: bool) -> list[Any]:
    """What the fixtures are parametrised with; ``slow`` marks the backends that compile slowly."""
    made = []
    for vendor, precision in labels():
        marks = [pytest.mark.gpu] if vendor.device == CUDA else []
        if slow and not vendor.quick:
            marks.append(pytest.mark.slow)
        made.append(
            pytest.param((vendor, precision), marks=marks, id=f"{vendor.label}-{precision}")
        )
    return made


class Vendor:
    """One backend that works here, with what it compiled so far."""

    def __init__(self, made: Backend, precision: str, toy: Any, pt2: Pt2) -> None:
        self.backend = made
        self.target = made.target(max_batch=MAX_BATCH, threads=1, precision=precision)
        self.tolerance = made.tolerance_for(precision)
        self.toy = toy
        self._pt2 = pt2
        self._compiled: dict[str, bytes] = {}

    def segment(self, name: str) -> Segment:
        """With the form that this vendor reads."""
        segment: Segment = self.toy.segment(name)
        if PT2 not in self.backend.forms:
            return segment
        return replace(segment, forms={**segment.forms, PT2: self._pt2(name)})

    def compiled(self, name: str) -> bytes:
        """The engine of a segment, compiled once a session."""
        if name not in self._compiled:
            self._compiled[name] = self.backend.compile(self.segment(name), self.target)
        return self._compiled[name]

    def engine(self, name: str) -> Engine:
        """A fresh engine."""
        return self.backend.load(self.compiled(name), self.segment(name), self.target)

    def images(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        """What a pioneer reads, on the vendor's device."""
        draw = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw)
        return {IMAGES: pixels.to(self.target.device)}

    def features(self, count: int, seed: int = 0) -> dict[str, Tensor]:
        """What a tail reads, on the vendor's device."""
        draw = torch.Generator().manual_seed(seed)
        return {FEATURES: torch.rand(count, 4, 4, 4, generator=draw).to(self.target.device)}

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Room for an output, on the vendor's device, filled with NaN."""
        return torch.full(shape, torch.nan, dtype=dtype, device=self.target.device)

    def verified(self, engine: Engine, name: str) -> float:
        """The engine's difference from the canary of node ``name``; ParityError beyond bounds."""
        node = next(node for node in self.toy.nodes if node.name == name)
        place = device_named(self.target.device)
        return verify(engine, Tree(self.toy.nodes), node, self.toy.canary, self.tolerance, place)

    def __str__(self) -> str:
        return f"{self.backend.label} {self.target.precision}"


Vendors = Callable[[tuple[Backend, str]], Vendor]


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What vendors write beside the engines goes where pytest removes it."""
    place = str(tmp_path_factory.mktemp("vendors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", place)
        patch.setenv("TMPDIR", place)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", place)
        yield


@pytest.fixture(scope="session")
def pt2(toy: Any) -> Pt2:
    """The exported program of one of the little network's segments, exported once."""
    made: dict[str, bytes] = {}

    def exported(name: str) -> bytes:
        if name not in made:
            (spec,) = toy.segment(name).inputs
            example = torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype))
            made[name] = pt2_bytes(toy.modules[name], example, MAX_BATCH)
        return made[name]

    return exported


@pytest.fixture(scope="session")
def vendors(toy: Any, pt2: Pt2) -> Vendors:
    """Each backend that works here, with what it compiled so far, once for all tests: pytest makes
    a parameter's fixture anew whenever tests come back to that parameter."""
    known: dict[str, Vendor] = {}

    def vendor(parameter: tuple[Backend, str]) -> Vendor:
        made, precision = parameter
        found = made.availability()
        if not found and os.environ.get("CI") == "true" and made.label in REQUIRED:
            pytest.fail(f"CI must have {made.label}: {found.reason}", pytrace=False)
        if not found:
            pytest.skip(f"{made.label}: {found.reason} {found.install}")
        return known.setdefault(f"{made.label} {precision}", Vendor(made, precision, toy, pt2))

    return vendor


@pytest.fixture(scope="session", params=parameters(slow=False))
def vendor(request: pytest.FixtureRequest, vendors: Vendors) -> Vendor:
    """Each backend that works here. Tests compile ``pioneer`` alone, once for all of them."""
    return vendors(request.param)


@pytest.fixture(scope="session", params=parameters(slow=True))
def many(request: pytest.FixtureRequest, vendors: Vendors) -> Vendor:
    """The same for tests that compile several segments: marked ``slow`` where that takes long."""
    return vendors(request.param)


@pytest.fixture(params=list(labels()), ids=lambda pair: f"{pair[0].label}-{pair[1]}")
def compiler(request: pytest.FixtureRequest) -> tuple[Backend, str]:
    """Each backend that compiles here but cannot run, with a precision; it needs no GPU."""
    made, precision = request.param
    found = made.availability()
    if found or not found.compiles:
        pytest.skip(f"{made.label} {'runs' if found else 'does not even compile'} here")
    return made, precision


@pytest.fixture
def pioneer(vendor: Vendor) -> Iterator[Engine]:
    """A fresh engine with two outputs."""
    engine = vendor.engine("pioneer")
    yield engine
    engine.close()
