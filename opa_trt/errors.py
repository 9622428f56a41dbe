"""Every error that opa_trt raises on purpose.

::

    OpaError
    ├── InputError                what a caller handed to ``infer``   (also a ValueError)
    │   ├── ImageError            rank, dtype, size, NaN, an empty group
    │   └── DeadlineError         zero, negative, NaN
    ├── DataError                 a data folder or a file in it
    │   └── BadImageError         an unreadable image; ``paths`` names them
    ├── ConfigError               a choice that does not exist        (also a ValueError)
    │   ├── RecipeError           an unknown or ill-typed recipe key
    │   ├── ArchError             a value outside the space
    │   └── UnknownNameError      policy, backend, recipe, family: names the nearest
    ├── InfeasibleBudget          no arch fits; says the smallest value that can be met
    ├── CheckpointError           weights that are missing, misshapen or of another space
    ├── BundleError
    │   ├── BundleCorrupt         a missing, truncated or altered file
    │   ├── BundleVersionError    a later format version
    │   ├── TargetMismatch        engines of another machine, and compiling was not allowed
    │   └── UntrustedForm         a form that can execute code, opened with ``trusted=False``
    ├── BackendError
    │   ├── BackendUnavailable    the vendor's package is missing; says what installs it
    │   ├── CompileError          the vendor refused the segment
    │   ├── EngineError           an engine was fed, loaded or used wrongly
    │   │   └── EngineMismatch    it belongs to another segment, version, device or machine
    │   ├── DeviceMemoryError     the device has no room for an engine
    │   └── ParityError           a fold, trace or engine differs from its reference
    └── RuntimeStateError
        ├── StaleLease            device memory of an earlier group
        ├── SessionClosed         use after ``close``
        └── SessionBusy           use from a second thread; ``fork`` gives it a session

A message has up to three parts: what was received, what was expected, what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class OpaError(Exception):
    """Base of the tree.

    ``received`` is the first line; ``expected`` and ``remedy`` follow where they help.
    """

    def __init__(self, received: str, *, expected: str = "", remedy: str = "") -> None:
        self.received = received
        self.expected = expected
        self.remedy = remedy
        super().__init__(received)

    def __str__(self) -> str:
        lines = [self.received]
        if self.expected:
            lines.append(f"  Expected  {self.expected}")
        if self.remedy:
            lines.append(f"  Remedy    {self.remedy}")
        return "\n".join(lines)


class InputError(OpaError, ValueError):
    """What a caller handed to the runtime cannot be used."""


class ImageError(InputError):
    """Images of the wrong rank, dtype or size, with NaN, or none at all."""


class DeadlineError(InputError):
    """A deadline that is not a number of milliseconds above 0 (infinity is)."""


class DataError(OpaError):
    """A data folder cannot be used as it is."""


class BadImageError(DataError):
    """One or more image files cannot be decoded; ``paths`` names them."""

    def __init__(
        self, received: str, *, paths: Sequence[Path], expected: str = "", remedy: str = ""
    ) -> None:
        super().__init__(received, expected=expected, remedy=remedy)
        self.paths = tuple(paths)


class ConfigError(OpaError, ValueError):
    """A choice that does not exist."""


class RecipeError(ConfigError):
    """A recipe has an unknown, missing or ill-typed key."""


class ArchError(ConfigError):
    """An arch names a value that its space does not offer."""


class UnknownNameError(ConfigError):
    """A name that is not in its list; the message names the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        choices = sorted(known)
        self.name = name
        near = nearest(name, choices)
        super().__init__(
            f"unknown {kind} {name!r}.",
            expected=f"one of {', '.join(choices)}." if choices else "",
            remedy=f"did you mean {near!r}?" if near else "",
        )


class InfeasibleBudget(OpaError):
    """No arch fits; ``smallest`` is the least value that can be met."""

    def __init__(self, received: str, *, smallest: float, remedy: str = "") -> None:
        super().__init__(received, expected=f"at least {smallest:g}.", remedy=remedy)
        self.smallest = smallest


class CheckpointError(OpaError):
    """Weights that are missing, misshapen, or of another space."""


class BundleError(OpaError):
    """A bundle cannot be opened or used."""


class BundleCorrupt(BundleError):
    """A file of a bundle is missing, truncated or altered."""


class BundleVersionError(BundleError):
    """A bundle was written in a later format."""


class TargetMismatch(BundleError):
    """The bundle's engines belong to another machine, and compiling was not allowed."""


class UntrustedForm(BundleError):
    """Only a form that can execute code is there, and the caller does not trust it."""


class BackendError(OpaError):
    """A backend cannot do what was asked."""


class BackendUnavailable(BackendError):
    """The vendor's package is missing or does not work here."""


class CompileError(BackendError):
    """The vendor refused a segment."""


class EngineError(BackendError):
    """An engine was fed, loaded or used wrongly."""


class EngineMismatch(EngineError):
    """An engine of another segment, version, device or machine."""


class DeviceMemoryError(BackendError):
    """The device has no room for an engine or its activations."""


class ParityError(BackendError):
    """Outputs differ from their reference by more than the tolerance."""


class RuntimeStateError(OpaError, RuntimeError):
    """The runtime was used in a state that does not allow it."""


class StaleLease(RuntimeStateError):
    """A buffer was read through the lease of an earlier group."""


class SessionClosed(RuntimeStateError):
    """A session was used after ``close``."""


class SessionBusy(RuntimeStateError):
    """A session was used while it answers a group: ``Session.fork`` gives a thread its own."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice most like ``name``, or None where none is close."""
    found = difflib.get_close_matches(name, list(choices), n=1)
    return found[0] if found else None
