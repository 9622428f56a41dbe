"""A legacy network becomes a flexible one (LeAF, section 3)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opa_trt.errors import ConfigError
from opa_trt.supernet.legacy.augmented import Augmented
from opa_trt.supernet.legacy.cost import measured_cost
from opa_trt.supernet.legacy.cutting import cut, phase_names
from opa_trt.supernet.legacy.narrow import Narrowing, shallow_phase

SIDE = 64  # of the example that shapes are learned from, where none is given


def augment(
    module: nn.Module,
    phases: str | Sequence[str],
    *,
    ratio: float = 0.25,
    divisor: int = 8,
    seed: int = 0,
    example: Tensor | None = None,
) -> Augmented:
    """Give each phase of a trained network a shallow alternative.

    ``module`` is copied and left as it is. In the copy its layers are frozen, and the legacy
    configuration computes what ``module`` does, to the bit. The alternatives keep the phases'
    input and output shapes, have ``ratio`` of their channels (see ``narrow.shallow_phase``), and
    begin with samples of the original weights; ``training.leaf`` trains them.

    Args:
        module: in evaluation mode, float32, on the CPU; torch.fx must be able to trace it.
        phases: a network of ``PHASES``, or the phases in the order in which they run. Each is a
            sub-module's path (``"layer1"``) or a range of one's children (``"features[2:4]"``, or
            ``"[2:4]"`` of the module itself).
            Between two phases may lie layers that belong to none; nothing may bypass a phase.
        ratio: the share of a phase's channels that its alternative has.
        divisor: what their number is a multiple of. Networks of few channels need a small one.
        seed: of which channels are sampled.
        example: normalised images, ``[N, 3, H, W] float32``; without it two of 64 pixels.

    Raises:
        ConfigError: phases that do not make up the module, a phase that changes its input in
            place, or that no shallow one can replace, a layer that cannot be narrowed, one in
            training mode, a batch norm without statistics, a ratio that leaves no channel, a
            module that cannot be traced.
        UnknownNameError: no such name in ``PHASES``.
    """
    names, how = phase_names(phases), Narrowing(ratio, divisor, seed)
    _check_frozen(module)
    own = copy.deepcopy(module)
    for layer in own.modules():  # two alternatives read what came before: neither may change it
        if hasattr(layer, "inplace"):
            layer.inplace = False  # type: ignore[assignment]
    pieces = cut(own, names)
    images = _images(seed) if example is None else example
    inputs = _inputs(module, pieces.links, pieces.phases, names, images)
    made = []
    for place, (phase, given) in enumerate(zip(pieces.phases, inputs, strict=True)):
        try:
            shallow = shallow_phase(phase, given, how, place)
            _check_shallow(shallow, phase, given)
        except ConfigError as exc:
            message = f"phase {names[place]}: {exc.received}"
            raise type(exc)(message, expected=exc.expected, remedy=exc.remedy) from exc
        made.append(shallow)
    facts = {"ratio": how.ratio, "divisor": how.divisor, "seed": how.seed}
    return Augmented(names, pieces.links, pieces.phases, made, facts).eval()


def _images(seed: int) -> Tensor:
    return torch.randn((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))


def _check_frozen(module: nn.Module) -> None:
    """A layer in training mode does not compute what the trained network did."""
    for name, layer in module.named_modules():
        norm = isinstance(layer, _BatchNorm)
        if layer.training and (norm or not name):
            message = f"{name or 'the module'} ({type(layer).__name__}) is in training mode."
            raise ConfigError(message, expected="evaluation mode.", remedy="call module.eval().")
        if norm and layer.running_mean is None:
            message = f"{name} ({type(layer).__name__}) has no running statistics."
            raise ConfigError(message, expected="statistics that do not depend on the batch.")
    for name, value in module.named_parameters():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            message = f"{name} is {value.dtype} on {value.device}."
            raise ConfigError(
                message, expected="float32 on the CPU.", remedy="module.float().cpu()"
            )


@torch.no_grad()
def _inputs(
    module: nn.Module,
    links: Sequence[nn.Module],
    phases: Sequence[nn.Module],
    names: Sequence[str],
    images: Tensor,
) -> list[Tensor]:
    """What each phase reads; the pieces must make up the module."""
    try:
        whole = module(images)
    except Exception as exc:  # whatever its layers say of a shape
        message = f"{type(module).__name__} cannot run on {list(images.shape)}: {exc}"
        raise ConfigError(message, remedy="pass normalised images as example=.") from exc
    inputs = []
    out: Tensor = links[0](images)
    for name, phase, link in zip(names, phases, links[1:], strict=True):
        inputs.append(out)
        version = out._version
        found: Tensor = phase(out)
        if out._version != version:
            message = f"phase {name} writes into its input."
            raise ConfigError(message, expected="a phase that leaves it to its alternative.")
        out = link(found)
    if not (isinstance(whole, Tensor) and torch.equal(whole, out)):
        message = f"the phases {', '.join(names)} do not compose to the module."
        raise ConfigError(message, expected="its own output, to the bit.")
    return inputs


@torch.no_grad()
def _check_shallow(shallow: nn.Module, phase: nn.Module, given: Tensor) -> None:
    """An alternative fits where the phase was, and costs less."""
    cost, found = measured_cost(shallow, given.to("meta"))
    whole, wanted = measured_cost(phase, given.to("meta"))
    if found.shape != wanted.shape:
        message = f"it makes {list(wanted.shape)} of {list(given.shape)}, its shallow alternative "
        message += f"{list(found.shape)}."
        raise ConfigError(message, expected="equal shapes.", remedy="name other phases.")
    if cost.macs >= whole.macs:
        message = f"its shallow alternative takes {cost.macs} MACs, the phase {whole.macs}."
        raise ConfigError(message, expected="fewer.", remedy="a smaller ratio or divisor.")
