"""Little trained-looking networks: residual, bottleneck, inverted residual, and plain."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opa_trt.supernet.legacy import Augmented, augment

PHASES = ("basic", "bottleneck", "inverted")
CLASSES = 5


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and norm."""
    padding = kernel // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A residual block as in ResNet: its body, a shortcut, ReLU after the sum."""

    def __init__(self, body: nn.Sequential, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        out += x if self.shortcut is None else self.shortcut(x)
        return self.relu(out)


class Inverted(nn.Module):
    """An inverted residual as in MobileNetV2, expansion 3."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = 3 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv(inputs, middle, 1),
            nn.ReLU6(inplace=True),
            *conv(middle, middle, 3, stride, groups=middle),
            nn.ReLU6(inplace=True),
            *conv(middle, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def basic(inputs: int, outputs: int, stride: int = 1) -> Block:
    """Two 3×3 convolutions."""
    body = nn.Sequential(
        *conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv(outputs, outputs, 3)
    )
    same = stride == 1 and inputs == outputs
    return Block(body, None if same else conv(inputs, outputs, 1, stride))


def bottleneck(inputs: int, outputs: int, stride: int = 1) -> Block:
    """1×1, 3×3 and 1×1, a quarter of the channels between."""
    middle = outputs // 4
    body = nn.Sequential(
        *conv(inputs, middle, 1),
        nn.ReLU(inplace=True),
        *conv(middle, middle, 3, stride),
        nn.ReLU(inplace=True),
        *conv(middle, outputs, 1),
    )
    same = stride == 1 and inputs == outputs
    return Block(body, None if same else conv(inputs, outputs, 1, stride))


class Small(nn.Module):
    """``[N, 3, S, S] float32`` to logits, through one phase of each kind and a pooling between."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv(3, 8, 3), nn.ReLU(inplace=True))
        self.basic = nn.Sequential(basic(8, 8), basic(8, 8))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = nn.Sequential(bottleneck(8, 32), bottleneck(32, 32))
        self.inverted = nn.Sequential(Inverted(32, 16, 2), Inverted(16, 16, 1))
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.basic(self.stem(x)))
        x = self.inverted(self.bottleneck(x))
        return self.classifier(torch.flatten(x.mean((2, 3)), 1))


def scrambled(module: nn.Module, seed: int = 0) -> nn.Module:
    """``module`` in evaluation mode with every weight and statistic random."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            spread = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
            value.copy_(torch.randn(value.shape, generator=draw) * spread)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.add_(1)
                if layer.running_mean is None:
                    continue
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=draw) * 0.1)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=draw) + 0.5)
    return module.eval()


def small(classes: int = CLASSES, seed: int = 0) -> nn.Module:
    """A scrambled ``Small``."""
    return scrambled(Small(classes), seed)


def small_augmented(classes: int = CLASSES, seed: int = 0) -> Augmented:
    """``small`` with shallow alternatives of half of the channels."""
    return augment(small(classes, seed), PHASES, ratio=0.5, divisor=2, example=images(2, 16))


def images(count: int, side: int, seed: int = 0) -> Tensor:
    """``[count, 3, side, side] float32``."""
    return torch.randn((count, 3, side, side), generator=torch.Generator().manual_seed(seed))
