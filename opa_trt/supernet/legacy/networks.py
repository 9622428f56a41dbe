"""Legacy networks by name: torchvision's, a small residual network, and one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors
from torch import Tensor, nn

from opa_trt import atomic
from opa_trt.errors import CheckpointError, ConfigError, UnknownNameError
from opa_trt.supernet.checkpoint import COUNTER, FileKind, check_tensors, stored
from opa_trt.supernet.legacy.cutting import PHASES, RESNET
from opa_trt.supernet.legacy.torchvision_import import require_torchvision

SMALL_RESNET = "small_resnet"
OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:function
LEGACY = FileKind(
    "",
    0,
    "a .safetensors file of the network's state_dict",
    "`opa-trt train RECIPE --legacy --out FILE`",
)


class Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.body(x) + self.shortcut(x))
        return out


class SmallResNet(nn.Module):
    """A residual network for images of about 32 pixels (He et al. 2016, section 4.2).

    It has four phases, ``layer1`` to ``layer4``, where the paper's has three.

    Args:
        classes: of the images.
        widths: channels of the phases; each but the first halves the side.
        blocks: residual blocks a phase.
    """

    def __init__(
        self, classes: int, widths: Sequence[int] = (16, 32, 64, 128), blocks: int = 2
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        inputs = widths[0]
        for place, width in enumerate(widths, 1):
            stride = 1 if place == 1 else 2
            rest = (Residual(width, width, 1) for _ in range(blocks - 1))
            self.add_module(f"layer{place}", nn.Sequential(Residual(inputs, width, stride), *rest))
            inputs = width
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        out = images
        for part in self.children():
            out = part(out)
        return out


def make_network(
    name: str, classes: int, *, seed: int = 0, weights: str | None = None, **options: Any
) -> nn.Module:
    """A network by name, in evaluation mode, its weights random unless they are named.

    Args:
        name: ``small_resnet``, one of ``PHASES`` (torchvision's), or ``package.module:function``,
            which is imported and called with ``classes``: this runs its code.
        classes: what it tells apart.
        seed: of the weights.
        weights: torchvision's name of some, such as ``IMAGENET1K_V1``, which are downloaded.
        options: for the network's constructor.

    Raises:
        UnknownNameError: no such name.
        ConfigError: one's own that cannot be imported, or that gives no module; weights that are
            not there, or of another number of classes.
        BackendUnavailable: torchvision is needed, and not installed.
    """
    if weights is not None and (name == SMALL_RESNET or is_own(name)):
        message = f"{name} has no weights called {weights!r}."
        raise ConfigError(
            message, expected="a .safetensors file; only torchvision's networks have named weights."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == SMALL_RESNET:
            module: Any = SmallResNet(classes, **options)
        elif name in PHASES:
            module = _torchvision(name, classes, weights, options)
        elif is_own(name):
            module = _own(name)(classes, **options)
        else:
            kind = "legacy network"
            raise UnknownNameError(kind, name, [SMALL_RESNET, *PHASES, "package.module:function"])
    if not isinstance(module, nn.Module):
        message = f"{name} gives a {type(module).__name__}."
        raise ConfigError(message, expected="a torch.nn.Module.")
    return module.eval()


def is_own(name: str) -> bool:
    """Whether a network's name is that of one's own function."""
    return OWN.fullmatch(name) is not None


def phases_of(name: str, named: Sequence[str] = ()) -> tuple[str, ...]:
    """The phases of a network: those named, or the ready ones.

    Raises:
        ConfigError: one's own network, and no phase named.
    """
    ready = {**PHASES, SMALL_RESNET: RESNET}
    if not named and name not in ready:
        message = f"network {name} has no ready phases."
        raise ConfigError(message, expected="legacy.phases = [...], its sub-modules in order.")
    return tuple(named) or ready[name]


def load_weights(module: nn.Module, weights: Path) -> None:
    """Put a file of weights into ``module``, in place and in float32.

    Args:
        module: the network.
        weights: a ``.safetensors`` file of its ``state_dict``; half precision is widened.

    Raises:
        CheckpointError: no such file, one that cannot be read, or the weights of another network.
    """
    if not weights.is_file():
        message = f"{weights} does not exist."
        raise CheckpointError(
            message, expected=f"{LEGACY.what}.", remedy=f"write them with {LEGACY.command}."
        )
    try:
        every = load_file(weights)
    except SafetensorError as exc:
        message = f"{weights} is not a readable safetensors file: {exc}."
        raise CheckpointError(message, expected=f"{LEGACY.what}.") from exc
    found = {k: v for k, v in every.items() if not k.endswith(COUNTER)}
    check_tensors(weights, module.state_dict(), found, LEGACY)
    wide = {key: v.float() for key, v in found.items()}
    module.load_state_dict(wide, strict=False)


def save_weights(module: nn.Module, path: Path, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write a network's ``state_dict`` to ``path`` in half precision, atomically.

    Args:
        module: the network.
        path: a ``.safetensors`` file.
        notes: JSON values kept beside the weights.
    """
    metadata = {"notes": json.dumps(dict(notes or {}))}
    atomic.write_bytes(path, safetensors(stored(module, half=True), metadata=metadata))


def _torchvision(name: str, classes: int, weights: str | None, options: Any) -> Any:
    models = require_torchvision().models
    known = {} if weights is not None else {"num_classes": classes}  # else as they have it
    try:
        return models.get_model(name, weights=weights, **known, **options)
    except (KeyError, ValueError) as exc:
        message = f"torchvision has no {name} with weights {weights!r}: {exc}"
        raise ConfigError(message, expected="a name such as IMAGENET1K_V1.") from exc


def _own(name: str) -> Callable[..., Any]:
    package, _, function = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(package), function)
    except (ImportError, AttributeError) as exc:
        message = f"{name} cannot be imported: {exc}"
        raise ConfigError(message, expected="package.module:function, on the Python path.") from exc
    return found
