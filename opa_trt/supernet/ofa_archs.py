"""Archs as OFA's code writes them: a dictionary of flat lists, an entry a slot.

::

    {"ks": [3, 7, …], "e": [4, 6, …], "d": [2, 4, 3, 2, 4], "r": [224]}      inverted residuals
    {"d": [2, 0, 1, 2, 0], "e": [0.2, …], "w": [0, 2, …], "r": [224]}        ResNet50D

A number in place of a list stands for all its entries. Newer files say ``image_size`` for ``r``,
tutorials carry ``wid: None``. ``w`` are places in the list of widths, not widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from opa_trt.errors import ArchError
from opa_trt.supernet.arch import Arch, Ratio

if TYPE_CHECKING:
    from opa_trt.supernet.space import Space

RESOLUTION_KEYS = ("r", "image_size")
OPTIONAL_KEYS = ("ks", "w", "wid")  # OFA's code calls them with None where a space has none
LEFT_OUT = (0, None)  # what OFA's encoders write in slots that the depth leaves out


def arch_from_ofa(values: Mapping[str, Any], space: Space) -> Arch:
    """The arch of ``space`` that OFA's dictionary describes; the largest resolution by default.

    Raises:
        ArchError: names the key, the position, the value and its choices.
    """
    keys = {"ks": bool(space.kernel_choices), "e": True, "d": True, "w": space.width_slots > 0}
    _check_keys(values, [key for key, needed in keys.items() if needed])
    resolution = _resolution(values, space)
    depths = space.depths_from_ofa(values["d"])
    kept = [
        block < depth
        for depth, blocks in zip(depths[space.stem_depths :], space.slots, strict=True)
        for block in range(blocks)
    ]
    kernels = _slots("ks", values["ks"], space.kernel_choices, kept) if keys["ks"] else None
    ratios = _slots("e", values["e"], space.expand_choices, kept)
    return space.arch(
        resolution=resolution,
        depths=depths,
        kernel_sizes=None if kernels is None else [int(kernel) for kernel in kernels],
        expand_ratios=ratios,
        widths=_widths(values["w"], space) if keys["w"] else None,
    )


def arch_to_ofa(arch: Arch, space: Space) -> dict[str, list[Ratio]]:
    """``arch`` as OFA writes it; slots that the depth leaves out get the smallest choice.

    Raises:
        ArchError: ``arch`` lies outside ``space``.
    """
    space.validate(arch)
    found: dict[str, list[Ratio]] = {}
    if space.kernel_choices:
        found["ks"] = _flat(arch.kernel_sizes, space.kernel_choices[0], space.slots)
    found["e"] = _flat(arch.expand_ratios, space.expand_choices[0], space.slots)
    found["d"] = [*space.depths_to_ofa(arch.depths)]
    if arch.widths:
        found["w"] = [space.width_choices.index(width) for width in arch.widths]
    return found | {"r": [arch.resolution]}


def says_resolution(values: Mapping[str, Any]) -> bool:
    """Whether OFA's dictionary names a resolution."""
    return any(values.get(key) is not None for key in RESOLUTION_KEYS)


# --- what the spaces' own readings are made of ----------------------------------------------------


def entries(key: str, given: Any, *lengths: int) -> list[Any]:
    """``given`` as a list of one of ``lengths``; one number fills the longest.

    Raises:
        ArchError: neither a number nor a list, or of another length.
    """
    if _is_number(given):
        return [given] * max(lengths)
    many = "1 entry" if lengths == (1,) else f"{' or '.join(map(str, lengths))} entries"
    wanted = f"{many}, or one number for all."
    if not isinstance(given, list | tuple):
        message = f"{key} is {given!r}."
        raise ArchError(message, expected=f"a list of {wanted}")
    if len(given) not in lengths:
        message = f"{key} has {len(given)} entries."
        raise ArchError(message, expected=wanted)
    return list(given)


def chosen(key: str, given: Sequence[Any], choices: Sequence[Sequence[Ratio]]) -> list[Ratio]:
    """``given``, each entry as its own choices have it.

    Raises:
        ArchError: an entry is none of its choices.
    """
    found = []
    for position, (value, options) in enumerate(zip(given, choices, strict=True)):
        if not _is_number(value) or value not in options:
            message = f"{key}[{position}] is {value!r}."
            raise ArchError(message, expected=f"one of {list(options)}.")
        found.append(options[options.index(value)])
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_keys(values: Mapping[str, Any], needed: Sequence[str]) -> None:
    for key in values:
        optional = key in OPTIONAL_KEYS and values[key] is None
        if key not in needed and key not in RESOLUTION_KEYS and not optional:
            message = f"an OFA arch has the key {key!r} = {values[key]!r}."
            raise ArchError(message, expected=f"{', '.join(needed)} and r (or image_size).")
    for key in needed:
        if values.get(key) is None:
            message = f"an OFA arch has no {key!r}, only {sorted(values)}."
            raise ArchError(message, expected=f"{', '.join(needed)} and r (or image_size).")


def _resolution(values: Mapping[str, Any], space: Space) -> int:
    found = {key: values[key] for key in RESOLUTION_KEYS if values.get(key) is not None}
    sides = {key: entries(key, value, 1)[0] for key, value in found.items()}
    for key, side in sides.items():
        if not _is_number(side) or not (isinstance(side, int) or side.is_integer()):
            message = f"{key} is {found[key]!r}."
            raise ArchError(message, expected="a side in whole pixels, or a list of one.")
        try:
            space.largest(int(side))
        except ArchError as exc:
            message = f"{key} is {found[key]!r}."
            raise ArchError(message, expected=exc.expected) from exc
    if len(set(sides.values())) > 1:
        message = f"r is {values['r']!r}, and image_size is {values['image_size']!r}."
        raise ArchError(message, expected="one resolution.")
    return int(next(iter(sides.values()), space.resolutions[-1]))


def _slots(key: str, given: Any, choices: Sequence[Ratio], kept: Sequence[bool]) -> list[Ratio]:
    """An entry a slot; those that the depth leaves out may also be 0 or None."""
    listed = entries(key, given, len(kept))
    for slot, (value, keep) in enumerate(zip(listed, kept, strict=True)):
        if not keep and not isinstance(value, bool) and value in LEFT_OUT:
            listed[slot] = choices[0]
    return chosen(key, listed, [choices] * len(kept))


def _widths(given: Any, space: Space) -> list[Ratio]:
    places = tuple(range(len(space.width_choices)))
    listed = entries("w", given, space.width_slots)
    return [space.width_choices[int(w)] for w in chosen("w", listed, [places] * len(listed))]


def _flat(stages: Sequence[Sequence[Ratio]], smallest: Ratio, slots: Sequence[int]) -> list[Ratio]:
    flat: list[Ratio] = []
    for values, blocks in zip(stages, slots, strict=True):
        flat += [*values, *[smallest] * (blocks - len(values))]
    return flat
