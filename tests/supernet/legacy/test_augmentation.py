"""A network becomes a flexible one: the same legacy, fitting alternatives, clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from opa_trt.errors import ConfigError, UnknownNameError
from opa_trt.supernet.legacy import Augmented, Configuration, augment
from tests.supernet.legacy.small_networks import (
    PHASES,
    Inverted,
    basic,
    bottleneck,
    conv,
    images,
    scrambled,
    small,
    small_augmented,
)

LEGACY = Configuration.of(3)


@pytest.fixture(scope="module")
def network() -> Augmented:
    return small_augmented()


def made(*phases: nn.Module, **options: object) -> Augmented:
    """A stem to 16 channels, the phases, pooling; augmented."""
    whole = nn.Sequential(*conv(3, 16, 3), *phases, nn.AdaptiveAvgPool2d(1))
    names = [str(place) for place in range(2, 2 + len(phases))]
    return augment(scrambled(whole), names, **{"divisor": 2, **options})


# --- the legacy network -------------------------------------------------------------------------


def test_the_legacy_configuration_is_the_original_to_the_bit(network: Augmented) -> None:
    given = images(4, 16, seed=3)
    with torch.no_grad():
        assert torch.equal(network(given, LEGACY), small()(given))


def test_the_original_is_left_as_it_is() -> None:
    module = small()
    before = copy.deepcopy(module.state_dict())
    augmented = augment(module, PHASES, ratio=0.5, divisor=2)
    augmented.legacy[0][0].body[0].weight.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.basic[0].relu.inplace  # type: ignore[index, union-attr]


def test_only_shallow_phases_are_trained(network: Augmented) -> None:
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"shallow"}
    assert all(parameter.requires_grad for parameter in network.shallow.parameters())


def test_training_mode_leaves_the_legacy_layers_in_evaluation_mode() -> None:
    network = small_augmented().train()
    assert network.training
    assert all(layer.training for layer in network.shallow.modules())
    frozen = [*network.legacy.modules(), *network.links.modules()]
    assert not any(layer.training for layer in frozen)
    assert not any(layer.training for layer in network.eval().modules())


def test_training_changes_nothing_of_the_legacy_network() -> None:
    network, given = small_augmented().train(), images(4, 16, seed=3)
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        network.forward_many(given, [*network.configurations()]).square().mean().backward()
        optimizer.step()
    changed = {k for k, value in network.state_dict().items() if not torch.equal(value, before[k])}
    assert {key.split(".")[0] for key in changed} == {"shallow"}
    assert any("running_mean" in key for key in changed)
    with torch.no_grad():
        assert torch.equal(network.eval()(given, LEGACY), small()(given))


# --- the alternatives ---------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 24])
def test_alternatives_keep_the_shapes(network: Augmented, side: int) -> None:
    with torch.no_grad():
        out = network.links[0](images(2, side))
        for place, link in enumerate(network.links[1:]):
            wanted = network.phase(place, False)(out)
            assert network.phase(place, True)(out).shape == wanted.shape
            out = link(wanted)


def test_alternatives_have_a_part_of_the_channels(network: Augmented) -> None:
    channels = [
        [layer.out_channels for layer in phase.modules() if isinstance(layer, nn.Conv2d)]
        for phase in network.shallow
    ]
    # The first block of a residual phase gets a projection of its input, the others need none.
    assert channels[0] == [4, 4, 4, 4, 4, 8]
    assert channels[1] == [4, 4, 16, 16, 4, 4, 16, 32]
    # An expansion is three times its input; the last projection closes the phase.
    assert channels[2] == [96, 96, 8, 24, 24, 16]


def test_a_shortcut_that_needs_no_projection_any_more_has_none() -> None:
    network = made(nn.Sequential(bottleneck(16, 32), bottleneck(32, 32)), ratio=0.5)
    pointwise = [m for m in network.shallow[0].modules() if isinstance(m, nn.Conv2d)]
    assert [layer.out_channels for layer in pointwise] == [4, 4, 16, 4, 4, 16, 32]


def test_a_shortcut_with_a_stride_keeps_its_projection() -> None:
    network = made(nn.Sequential(bottleneck(16, 32, 2), bottleneck(32, 32)), ratio=0.5)
    strides = [m.stride for m in network.shallow[0].modules() if isinstance(m, nn.Conv2d)]
    assert strides.count((2, 2)) == 2


def test_alternatives_begin_with_samples_of_the_original_weights(network: Augmented) -> None:
    original = network.legacy[1][1].body
    narrow = [network.shallow[1].get_submodule(f"1.body.{place}") for place in range(8)]
    wide, slim = original[3].weight, narrow[3].weight  # 3×3, 8 channels to 8, and 4 to 4
    pairs = [
        [(i, j) for i in range(8) for j in range(8) if torch.equal(wide[i, j], slim[a, b])]
        for a in range(4)
        for b in range(4)
    ]
    assert all(len(found) == 1 for found in pairs)
    middle = [found[0][0] for found in pairs[::4]]
    means = original[7].running_mean.tolist()
    outputs = [means.index(value) for value in narrow[7].running_mean.tolist()]
    assert middle == sorted(set(middle))
    assert outputs == sorted(set(outputs))
    assert torch.equal(narrow[4].running_var, original[4].running_var[middle])
    assert torch.equal(narrow[6].weight, original[6].weight[outputs][:, middle])


def test_the_closing_convolution_begins_as_the_last_of_the_phase(network: Augmented) -> None:
    last, closing = network.legacy[1][1].body, network.shallow[1].get_submodule("closing")
    columns = [
        [i for i in range(8) if torch.equal(last[6].weight[:, i], closing[0].weight[:, j])]
        for j in range(8)
    ]
    assert columns == [[i] for i in range(8)]
    assert torch.equal(closing[1].running_mean, last[7].running_mean)


def test_what_ends_in_an_activation_still_does(network: Augmented) -> None:
    with torch.no_grad():
        out = network.shallow[0](network.links[0](images(2, 16)))
    assert out.min() == 0


def test_a_projected_shortcut_picks_the_sampled_channels(network: Augmented) -> None:
    (weight,) = [v for k, v in network.shallow[0].named_parameters() if "projection" in k][:1]
    assert weight.sum() == 4
    assert (weight.flatten(1).sum(1) == 1).all()


def test_the_seed_decides_what_is_sampled() -> None:
    one, same, other = (made(basic(16, 16), ratio=0.5, seed=seed).shallow for seed in (0, 0, 1))
    states = [phases.state_dict() for phases in (one, same, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(*(state["0.body.0.weight"] for state in states[::2]))


def test_the_callers_draws_are_left_alone() -> None:
    module = small()
    torch.manual_seed(4)
    wanted = torch.rand(3)
    torch.manual_seed(4)
    augment(module, PHASES, ratio=0.5, divisor=2)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize(
    "phase",
    [
        nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, dilation=2)),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.LeakyReLU(), nn.MaxPool2d(2)),
        nn.Sequential(basic(16, 32, 2), nn.Dropout2d(0.2)),
        nn.Sequential(Inverted(16, 16, 1), Inverted(16, 16, 1)),
    ],
    ids=["no norm", "pooling last", "dropout", "shortcut from the input"],
)
def test_other_phases_can_be_narrowed(phase: nn.Module) -> None:
    network, given = made(phase), images(2, 32)
    with torch.no_grad():
        shapes = {network(given, each).shape for each in network.configurations()}
    assert len(shapes) == 1
    cost = network.costs(32)
    assert cost.shallow[0].macs < cost.legacy[0].macs


class Gated(nn.Module):
    """Squeeze and excitation, as mobile networks have it, with functions rather than layers."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = conv(16, 48, 1), conv(48, 24, 1)
        self.middle = conv(48, 48, 3, groups=48)
        self.reduce, self.widen = nn.Conv2d(48, 12, 1), nn.Conv2d(12, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.hardswish(self.middle(self.expand(x)))
        pooled = nn.functional.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(self.widen(nn.functional.relu(self.reduce(pooled))))
        return self.project(gate * x)


def test_gates_are_narrowed_with_what_they_gate() -> None:
    network = made(nn.Sequential(Gated(), Inverted(24, 24, 1)), ratio=0.25)
    gated = network.shallow[0].get_submodule("0")
    # Expansion 3 of the 16 channels that come in, all of them; a quarter of 24 goes out.
    sizes = {name: gated.get_submodule(name).out_channels for name in ("reduce", "widen")}
    assert sizes == {"reduce": 4, "widen": 48}
    assert gated.get_submodule("project.0").out_channels == 6


def test_phases_may_be_children_of_the_module_itself() -> None:
    layers = [*conv(3, 16, 3), basic(16, 16), basic(16, 16), nn.AdaptiveAvgPool2d(1)]
    module, given = scrambled(nn.Sequential(*layers)), images(2, 16)
    network = augment(module, ["[2:4]"], ratio=0.5)
    assert network.phases == ("[2:4]",)
    with torch.no_grad():
        assert torch.equal(network(given, network.legacy_configuration), module(given))


# --- bad input ----------------------------------------------------------------------------------


class Skipping(nn.Module):
    """What the first phase reads is read again after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 16, 3), basic(16, 16), basic(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.two(self.one(x) + x)


class Branching(nn.Module):
    """Decides by what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.one = basic(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) if x.sum() > 0 else self.one(-x)


class Writing(nn.Module):
    """Changes what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.body = basic(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.mul_(2))


class Noisy(nn.Module):
    """Never gives the same again."""

    def __init__(self) -> None:
        super().__init__()
        self.one = basic(3, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + torch.rand(1)


class Twice(nn.Module):
    """Runs a layer two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


class Two(nn.Module):
    """Gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one = basic(3, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), x


@pytest.mark.parametrize(
    ("module", "phases", "message"),
    [
        (Skipping, ["one", "two"], r"add reads stem, past a phase"),
        (Branching, ["one"], r"Branching cannot be traced"),
        (Noisy, ["one"], r"the phases one do not compose to the module"),
        (Two, ["one"], r"gives tuple where a phase begins, or at its end"),
        (small, ["bottleneck", "basic"], r"(?s)phases bottleneck, basic.*order in which they run"),
        (small, ["basic", "nothing"], r"(?s)phase 'nothing': Small has no 'nothing'.*features"),
        (small, ["basic[1:3]"], r"(?s)phase 'basic\[1:3\]' of 2 children.*within 0 and 2"),
        (small, ["basic[1:1]"], r"a range within 0 and 2"),
        (small, [], r"phases \[\]"),
        (small, [""], r"phase ''"),
        (small, ["basic", "basic"], r"and each once"),
        (small, ["basic.0.body.0"], r"past a phase"),
        (small, ["classifier"], r"phase classifier: its input has the shape \[2, 16\]"),
        (small, ["pool"], r"(?s)phase pool: ratio 0.25 in multiples of 2 leaves it every channel"),
    ],
)
def test_phases_that_do_not_make_up_the_module_are_refused(
    module: Callable[[], nn.Module], phases: Sequence[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        augment(module().eval(), phases, divisor=2)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (nn.Conv2d(16, 32, 3, groups=4), r"phase 2: 0 \(Conv2d\) has 4 groups"),
        (nn.Sequential(nn.Conv2d(16, 32, 3), nn.GroupNorm(4, 32)), r"1 \(GroupNorm\) is none of"),
        (nn.Sequential(nn.Conv2d(16, 32, 3), nn.PixelShuffle(2)), r"1 \(PixelShuffle\) is none of"),
        (nn.Sequential(nn.Conv2d(16, 32, 3), nn.Flatten(2)), r"1 \(Flatten\) gives a tensor of"),
        (
            nn.Sequential(parametrizations.weight_norm(nn.Conv2d(16, 32, 3))),
            r"0 \(ParametrizedConv2d\) is none of",
        ),
        (
            nn.Sequential(
                torch.ao.nn.qat.Conv2d(
                    16, 32, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig()
                )
            ),
            r"0 \(Conv2d\) is none of",
        ),
        (Twice(), r"layer \(Conv2d\) runs more than once"),
        (Writing(), r"phase 2 writes into its input"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_cannot_be_narrowed_are_named(phase: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(phase)


def test_a_module_in_training_mode_is_refused() -> None:
    module = small()
    module.get_submodule("basic.0.body.1").train()
    with pytest.raises(ConfigError, match=r"basic\.0\.body\.1 \(BatchNorm2d\) is in training mode"):
        augment(module, PHASES)
    with pytest.raises(ConfigError, match=r"(?s)the module \(Small\) is in training .*\.eval\(\)"):
        augment(small().train(), PHASES)


def test_a_module_of_another_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stem\.0\.weight is torch\.float64 on cpu"):
        augment(small().double(), PHASES)


def test_images_that_the_module_cannot_read_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)Small cannot run on \[1, 4, 16, 16\].*example="):
        augment(small(), PHASES, example=torch.zeros(1, 4, 16, 16))


def test_a_batch_norm_without_statistics_is_refused() -> None:
    norm = nn.BatchNorm2d(16, track_running_stats=False)
    with pytest.raises(ConfigError, match=r"2\.1 \(BatchNorm2d\) has no running statistics"):
        made(nn.Sequential(nn.Conv2d(16, 16, 3), norm))


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_a_ratio_lies_between_0_and_1(ratio: float) -> None:
    with pytest.raises(ConfigError, match="above 0, below 1"):
        made(basic(16, 16), ratio=ratio)


def test_a_ratio_that_leaves_no_channel_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)phase 2: ratio 0\.05 leaves none of the 16 .*body\.0.* 0\.0625"
    ):
        made(basic(16, 16), ratio=0.05)


def test_a_divisor_is_positive() -> None:
    with pytest.raises(ConfigError, match="divisor = 0"):
        made(basic(16, 16), divisor=0)


def test_an_alternative_that_costs_more_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)phase 2: its shallow .* MACs, the phase .*fewer"):
        made(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU()), ratio=0.9)


def test_an_unknown_phase_map_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'resnet18'"):
        augment(small(), "resnet19")
