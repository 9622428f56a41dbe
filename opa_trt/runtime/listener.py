"""Whoever wants to hear of decisions as they are made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

from opa_trt.errors import ConfigError
from opa_trt.policies import Decision

log = logging.getLogger(__name__)

OnDecision: TypeAlias = Callable[[Decision, str, int], Any]


class Listener:
    """Tells a callable of decisions; what it raises is logged once and passed over.

    Attributes:
        group: number of the group in flight, from 0.
    """

    def __init__(self, hear: OnDecision | None = None) -> None:
        self.group = -1
        self.hear = hear

    @property
    def hear(self) -> OnDecision | None:
        """What is called with each decision, the name of the node and the number of the group."""
        return self._hear

    @hear.setter
    def hear(self, hear: OnDecision | None) -> None:
        self._hear = check_listener(hear)
        self._failed = False

    def tell(self, decision: Decision, node: str) -> None:
        """A decision was made after ``node`` ran."""
        if self._hear is None:
            return
        try:
            self._hear(decision, node, self.group)
        except Exception:
            if not self._failed:
                log.exception("on_decision fails; its next errors are passed over in silence")
            self._failed = True


def check_listener(hear: Any) -> OnDecision | None:
    """What may hear of decisions.

    Raises:
        ConfigError: it cannot be called.
    """
    if hear is None:
        return None
    if callable(hear):
        made: OnDecision = hear
        return made
    message = f"on_decision is a {type(hear).__name__}."
    raise ConfigError(message, expected="a callable (decision, node, group), or None.")
