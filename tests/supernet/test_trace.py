"""Portable forms: any batch size, and a hash of what is computed rather than of bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opa_trt.backends.torchscript import read_trace
from opa_trt.supernet.trace import content, trace, trace_bytes

EXAMPLE = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A little of everything that is hashed; every keyword changes what is computed."""

    def __init__(
        self,
        *,
        seed: int = 0,
        stride: int = 1,
        padding: int = 1,
        mean: float = 0.3,
        eps: float = 1e-5,
        act: Callable[[], nn.Module] = nn.ReLU,
        scale: float = 2.0,
        swapped: bool = False,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 4, 3, stride=stride, padding=padding)
            self.linear = nn.Linear(4, 2)
        self.norm = nn.BatchNorm2d(4, eps=eps)
        assert self.norm.running_mean is not None
        self.norm.running_mean.fill_(mean)
        self.act = act()
        self.scale, self.swapped = scale, swapped

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.act(self.norm(self.conv(x))) * self.scale
        logits = self.linear(features.mean((2, 3)))
        return (logits, features) if self.swapped else (features, logits)


class Renamed(nn.Module):
    """``Net``'s layers under other names."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.first, self.second, self.third = net.conv, net.norm, net.linear

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.relu(self.second(self.first(x))) * 2.0
        return features, self.third(features.mean((2, 3)))


class Tanh(nn.Module):
    """A graph with a block inside it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if x.sum() > 0 else torch.tanh(x)


class Sigmoid(nn.Module):
    """The same, but for what stands in the block."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) if x.sum() > 0 else torch.sigmoid(x)


def hashed(module: nn.Module) -> str:
    return content(trace(module, EXAMPLE))


# --- traces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_trace_takes_any_batch(batch: int) -> None:
    net = Net().eval()
    images = torch.rand(batch, 3, 8, 8)
    for got, wanted in zip(trace(net, EXAMPLE)(images), net(images), strict=True):
        torch.testing.assert_close(got, wanted)


def test_bytes_read_back_compute_the_same() -> None:
    net = Net().eval()
    read = read_trace(trace_bytes(trace(net, EXAMPLE)))
    for got, wanted in zip(read(EXAMPLE), net(EXAMPLE), strict=True):
        torch.testing.assert_close(got, wanted)


def test_bytes_hold_no_path_of_this_machine() -> None:
    written = trace_bytes(trace(Net().eval(), EXAMPLE))
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        names = archive.namelist()
        assert not [name for name in names if name.endswith(".debug_pkl")]
        assert not [name for name in names if str(Path.cwd()).encode() in archive.read(name)]
        assert not [name for name in names if torch.__file__[:-12].encode() in archive.read(name)]


def test_bytes_hold_what_is_written_beside_the_trace() -> None:
    written = trace_bytes(trace(Net().eval(), EXAMPLE), {"notes.json": "{}"})
    with zipfile.ZipFile(io.BytesIO(written)) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("notes.json"))
        assert archive.read(name) == b"{}"


def test_a_trace_is_of_the_evaluation_mode() -> None:
    net = Net().train()
    trace(net, EXAMPLE)
    assert not net.training


# --- content ------------------------------------------------------------------------------------


def test_two_traces_of_one_module_agree() -> None:
    net = Net()
    assert hashed(net) == hashed(net)


def test_two_modules_that_compute_the_same_agree() -> None:
    assert hashed(Net()) == hashed(Net())


def test_names_do_not_count() -> None:
    assert hashed(Renamed(Net())) == hashed(Net())


def test_the_example_does_not_count() -> None:
    assert content(trace(Net(), torch.rand(5, 3, 8, 8))) == hashed(Net())


def test_memory_format_does_not_count() -> None:
    last = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert hashed(last) == hashed(Net())


def test_content_is_a_sha256() -> None:
    assert len(bytes.fromhex(hashed(Net()))) == 32


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"stride": 2},
        {"padding": 0},
        {"mean": 0.31},
        {"eps": 1e-3},
        {"act": nn.ReLU6},
        {"scale": 2.5},
        {"swapped": True},
    ],
    ids=str,
)
def test_whatever_changes_the_outputs_changes_the_content(changed: dict[str, object]) -> None:
    assert hashed(Net(**changed)) != hashed(Net())  # type: ignore[arg-type]


def test_one_weight_changes_the_content() -> None:
    net = Net()
    with torch.no_grad():
        net.linear.bias[0] += 1e-6
    assert hashed(net) != hashed(Net())


def test_blocks_inside_a_graph_count() -> None:
    def scripted(module: nn.Module) -> str:
        return content(torch.jit.freeze(torch.jit.script(module.eval())))

    assert scripted(Tanh()) == scripted(Tanh())
    assert scripted(Tanh()) != scripted(Sigmoid())
