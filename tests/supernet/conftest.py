"""Small random spaces, archs of them, and super-networks in which every number is random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from opa_trt.supernet import Arch, MobileNetV3Space, Supernet

Choices = st.SearchStrategy[tuple[MobileNetV3Space, Arch]]
MakeSpace = Callable[..., MobileNetV3Space]
MakeSupernet = Callable[..., Supernet]
MakeImages = Callable[..., Tensor]

TINY: dict[str, Any] = {
    "classes": 3,
    "resolutions": (16, 20),
    "depth_choices": (1, 2),
    "kernel_choices": (3, 5),
    "expand_choices": (1, 2, 4),
    "stem_width": 8,
    "stage_widths": (8, 16),
    "stage_strides": (1, 2),
    "stage_act": ("relu", "h_swish"),
    "stage_squeeze_excite": (False, True),
    "head_width": 24,
    "feature_width": 32,
}


@st.composite
def _spaces(draw: st.DrawFn) -> MobileNetV3Space:
    stages = draw(st.integers(1, 3))

    def each(*values: Any) -> tuple[Any, ...]:
        drawn = st.lists(st.sampled_from(values), min_size=stages, max_size=stages)
        return tuple(draw(drawn))

    return MobileNetV3Space(
        classes=draw(st.integers(2, 5)),
        resolutions=draw(st.sampled_from([(16,), (16, 20), (20, 28, 32)])),
        depth_choices=draw(st.sampled_from([(1,), (1, 2), (2, 3), (1, 3)])),
        kernel_choices=draw(st.sampled_from([(3,), (3, 5), (3, 5, 7), (3, 7)])),
        expand_choices=draw(st.sampled_from([(2,), (1, 2), (1, 1.5, 3), (3, 4, 6)])),
        width=draw(st.sampled_from([0.5, 1.0, 1.2])),
        stem_width=draw(st.sampled_from([8, 16])),
        stem_stride=draw(st.sampled_from([1, 2])),
        stage_widths=each(8, 16, 24),
        stage_strides=each(1, 2),
        stage_act=each("relu", "relu6", "h_swish", "none"),
        stage_squeeze_excite=each(False, True),
        head_width=draw(st.sampled_from([16, 40])),
        feature_width=draw(st.sampled_from([16, 24])),
    )


@st.composite
def _choices(draw: st.DrawFn) -> tuple[MobileNetV3Space, Arch]:
    space = draw(_spaces())
    arch = space.arch(
        resolution=draw(st.sampled_from(space.resolutions)),
        depths=[draw(st.sampled_from(space.depth_choices)) for _ in space.slots],
        kernel_sizes=[draw(st.sampled_from(space.kernel_choices)) for _ in range(sum(space.slots))],
        expand_ratios=[
            draw(st.sampled_from(space.expand_choices)) for _ in range(sum(space.slots))
        ],
    )
    return space, arch


@pytest.fixture(scope="session")
def choices() -> Choices:
    """A strategy: a small space and one of its archs."""
    return _choices()


@pytest.fixture(scope="session")
def tiny_space() -> MakeSpace:
    """A two-stage space; keywords replace its parameters."""

    def make(**changes: Any) -> MobileNetV3Space:
        return MobileNetV3Space(**{**TINY, **changes})

    return make


@pytest.fixture(scope="session")
def scrambled() -> MakeSupernet:
    """A super-network in evaluation mode whose norms, biases and matrices are random too."""

    def make(space: MobileNetV3Space, seed: int = 0) -> Supernet:
        supernet = Supernet(space, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in supernet.named_parameters():
                if "matrices" in name:
                    value.add_(torch.randn(value.shape, generator=draw) * 0.1)
                elif value.ndim == 1:
                    value.copy_(torch.rand(value.shape, generator=draw) + 0.25)
            for layer in supernet.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    shape = layer.num_features
                    layer.running_mean.copy_(torch.randn(shape, generator=draw) * 0.3)
                    layer.running_var.copy_(torch.rand(shape, generator=draw) + 0.5)
        return supernet.eval()

    return make


@pytest.fixture(scope="session")
def normal_images() -> MakeImages:
    """``[count, 3, side, side] float32`` of seeded standard normals."""

    def make(side: int, count: int = 2, seed: int = 0) -> Tensor:
        draw = np.random.default_rng(seed)
        return torch.from_numpy(draw.standard_normal((count, 3, side, side), np.float32))

    return make
