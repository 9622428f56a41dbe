"""Super-networks: extraction against the elastic forward, counted costs, sorted channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opa_trt.errors import ArchError
from opa_trt.supernet import Arch, Cost, MobileNetV3Space, Supernet

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


def count(module: nn.Module, x: Tensor) -> tuple[Cost, Tensor]:
    """MACs of one image by hooks on every convolution and linear layer; parameters by size."""
    macs = 0

    def add(layer: Any, _: Any, out: Tensor) -> None:
        nonlocal macs
        reads = layer.weight[0].numel()  # inputs of one output value
        macs += reads * out[0].numel()

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    with torch.no_grad():
        out = module(x)
    for hook in hooks:
        hook.remove()
    return Cost(macs, sum(p.numel() for p in module.parameters())), out


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value: what is summed cancels."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


def assert_states_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def copied_state(supernet: Supernet) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in supernet.state_dict().items()}


# --- laws ---------------------------------------------------------------------------------------


@PROPERTY
@given(data=st.data())
@torch.no_grad()
def test_an_extracted_network_equals_the_elastic_forward(
    choices: Any, scrambled: Any, normal_images: Any, data: st.DataObject
) -> None:
    space, arch = data.draw(choices)
    supernet, images = scrambled(space), normal_images(arch.resolution)
    logits = supernet(images, arch)
    assert logits.shape == (2, space.classes)
    assert_same(supernet.extract(arch)(images), logits)


@PROPERTY
@given(data=st.data())
def test_costs_of_every_part_equal_an_independent_count(
    choices: Any, normal_images: Any, data: st.DataObject
) -> None:
    space, arch = data.draw(choices)
    out, found = normal_images(arch.resolution, count=1), {}
    for name, part in Supernet(space).extract(arch).named_children():
        found[name], out = count(part, out)
    assert found == space.costs(arch)


def test_a_column_of_table_1_is_what_the_extracted_network_costs() -> None:
    space = MobileNetV3Space()
    arch = space.smallest(224)
    found, _ = count(Supernet(space).extract(arch), torch.zeros(1, 3, 224, 224))
    assert found == Cost(121_278_672, 3_410_792)


@PROPERTY
@given(data=st.data())
@torch.no_grad()
def test_sorting_channels_keeps_the_full_networks_function(
    choices: Any, scrambled: Any, normal_images: Any, data: st.DataObject
) -> None:
    space, _ = data.draw(choices)
    level = data.draw(st.integers(0, len(space.expand_choices) - 1))
    supernet, largest = scrambled(space), space.largest()
    images = normal_images(largest.resolution)
    before = supernet(images, largest)
    supernet.sort_channels(level)
    assert_same(supernet(images, largest), before)


def second_width(space: MobileNetV3Space) -> Arch:
    return space.arch(expand_ratios=space.expand_choices[-2])


@torch.no_grad()
def test_sorting_at_level_1_keeps_the_second_widths_function(
    tiny_space: Any, scrambled: Any, normal_images: Any
) -> None:
    space = tiny_space(stage_squeeze_excite=(False, False))
    supernet, images = scrambled(space), normal_images(20)
    before = supernet(images, second_width(space))
    supernet.sort_channels(1)
    assert_same(supernet(images, second_width(space)), before)


@torch.no_grad()
def test_sorting_at_level_0_changes_the_second_widths_function(
    tiny_space: Any, scrambled: Any, normal_images: Any
) -> None:
    space = tiny_space()
    supernet, images = scrambled(space), normal_images(20)
    before = supernet(images, second_width(space))
    supernet.sort_channels(0)
    assert not torch.allclose(supernet(images, second_width(space)), before, atol=1e-3)


@torch.no_grad()
def test_sorting_twice_changes_nothing_more(tiny_space: Any, scrambled: Any) -> None:
    supernet = scrambled(tiny_space())
    supernet.sort_channels(0)
    before = copied_state(supernet)
    supernet.sort_channels(0)
    assert_states_equal(supernet.state_dict(), before)


def test_the_stem_is_not_sorted(tiny_space: Any, scrambled: Any) -> None:
    supernet = scrambled(tiny_space())
    before = {k: v for k, v in copied_state(supernet).items() if ".stem." in k}
    supernet.sort_channels(0)
    assert_states_equal({k: supernet.state_dict()[k] for k in before}, before)


# --- extraction ---------------------------------------------------------------------------------


def test_extraction_leaves_the_supernet_unchanged(tiny_space: Any, scrambled: Any) -> None:
    supernet = scrambled(tiny_space()).train()
    before = copied_state(supernet)
    supernet.extract(tiny_space().smallest())
    assert_states_equal(supernet.state_dict(), before)
    assert all(layer.training for layer in supernet.modules())
    assert all(parameter.requires_grad for parameter in supernet.parameters())


def test_extraction_leaves_the_global_generator_alone(tiny_space: Any, scrambled: Any) -> None:
    supernet = scrambled(tiny_space())
    torch.manual_seed(3)
    supernet.extract(tiny_space().smallest())
    drawn = torch.rand(3)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.rand(3))


def test_an_extracted_network_shares_no_memory(tiny_space: Any, scrambled: Any) -> None:
    supernet = scrambled(tiny_space())
    before = copied_state(supernet)
    module = supernet.extract(tiny_space().largest())
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            value.fill_(7)
    assert_states_equal(supernet.state_dict(), before)


def test_an_extracted_network_is_for_evaluation(tiny_space: Any) -> None:
    module = Supernet(tiny_space()).extract(tiny_space().smallest())
    assert not any(layer.training for layer in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_an_extracted_network_is_named_by_part(tiny_space: Any) -> None:
    module = Supernet(tiny_space()).extract(tiny_space().smallest())
    assert [name for name, _ in module.named_children()] == ["stem", "stage1", "stage2", "head"]


def test_an_extracted_network_has_plain_layers(tiny_space: Any) -> None:
    module = Supernet(tiny_space()).extract(tiny_space().largest())
    assert not [m for m in module.modules() if "elastic" in type(m).__module__]


def test_an_arch_outside_the_space_is_not_extracted(tiny_space: Any) -> None:
    other = tiny_space(kernel_choices=(7,)).largest()
    with pytest.raises(ArchError, match="kernel size in stage 1 is 7"):
        Supernet(tiny_space()).extract(other)


# --- weights ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights(tiny_space: Any) -> None:
    first, second = (Supernet(tiny_space(), seed=5) for _ in range(2))
    assert_states_equal(first.state_dict(), second.state_dict())


def test_another_seed_gives_other_weights(tiny_space: Any) -> None:
    first, second = (Supernet(tiny_space(), seed=seed) for seed in (0, 1))
    key = "parts.stem.conv.weight"
    assert not torch.equal(first.state_dict()[key], second.state_dict()[key])


def test_making_a_supernet_leaves_the_global_generator_alone(tiny_space: Any) -> None:
    torch.manual_seed(3)
    Supernet(tiny_space())
    drawn = torch.rand(3)
    torch.manual_seed(3)
    torch.testing.assert_close(drawn, torch.rand(3))


def test_gradients_reach_only_the_weights_that_ran(tiny_space: Any, normal_images: Any) -> None:
    space = tiny_space()
    supernet = Supernet(space)
    supernet(normal_images(16), space.smallest()).sum().backward()
    first, second = supernet.parts["stage2"].blocks
    gradient = first.project.weight.grad
    width = first.spec.middle(1)
    assert gradient[:, :width].abs().sum() > 0
    assert gradient[:, width:].abs().sum() == 0
    assert second.project.weight.grad is None


def test_dropout_acts_in_training_alone(tiny_space: Any, normal_images: Any) -> None:
    space = tiny_space(dropout=0.5)
    head = Supernet(space).parts["head"]
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 16, 4, 4), np.float32))
    head.train().norm.eval()
    torch.manual_seed(0)
    assert not torch.equal(head(features, space.largest()), head(features, space.largest()))
    head.eval()
    assert torch.equal(head(features, space.largest()), head(features, space.largest()))
