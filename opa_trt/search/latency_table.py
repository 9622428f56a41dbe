"""Latency of operators on one device, by name: once-for-all's tables (YAML) and our own (JSON).

A published table is one YAML file a resolution, ``{operator: {count, mean, std}}`` in ms. Ours is
one JSON file for all resolutions of a space, with the target that it was measured on.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opa_trt.errors import BackendUnavailable, ConfigError
from opa_trt.search.additive import AdditiveCost
from opa_trt.supernet import Genome, Space, space_from_dict
from opa_trt.supernet.operators import Operator

FORMAT = "opa_trt.latency"
VERSION = 1
LARGEST = sys.float_info.max  # whole numbers may be larger
STEM = re.compile(r"^Conv-input:(\d+)x\1x3-")
MEASURE = "opa-trt search measure-latency"


@dataclass(frozen=True)
class LatencyTable:
    """Mean latency (ms) of every operator, by resolution of the network's input, then by name.

    Operators of our own tables do not depend on the resolution: ``by_resolution`` then has the
    same mapping for each. The latency of a network is ``offset`` + ``scale`` x the sum of its
    operators; both are fitted to whole networks where a table was measured with them.
    """

    name: str
    by_resolution: Mapping[int, Mapping[str, float]]
    scale: float = 1.0
    offset: float = 0.0
    space: Space | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """The resolutions that it covers, ascending."""
        return tuple(sorted(self.by_resolution))

    def lookup(self, operator: Operator, resolution: int) -> float:
        """Mean latency of ``operator`` (ms), without scale and offset.

        Raises:
            ConfigError: the table lacks the resolution or the operator; names it.
        """
        operators = self.by_resolution.get(resolution)
        if operators is None:
            message = f"latency table {self.name} has no resolution {resolution}."
            raise ConfigError(message, expected=f"one of {list(self.resolutions)}.")
        if operator.key not in operators:
            message = f"latency table {self.name} lacks {operator.key} at resolution {resolution}."
            raise ConfigError(
                message,
                expected="an entry for every operator of the space.",
                remedy=f"measure a table for this space and device with `{MEASURE}`.",
            )
        return operators[operator.key]

    def cost(self, genome: Genome) -> AdditiveCost:
        """The latency (ms) of every arch of ``genome``.

        Raises:
            ConfigError: as ``lookup`` says.
        """
        return AdditiveCost(genome, self.lookup, scale=self.scale, offset=self.offset)


def read_latency(path: Path | str) -> LatencyTable:
    """Read a table: one file, or a folder of published ones.

    The resolution of a published table is that of its stem's convolution, whatever the file is
    called.

    Raises:
        ConfigError: no such file, an unreadable or ill-formed one, two for one resolution.
        BackendUnavailable: PyYAML is missing, and the table is a published one.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(p for p in place.iterdir() if p.suffix in {".yaml", ".yml"})
        if not files:
            message = f"{place} holds no latency table."
            raise ConfigError(message, expected="files such as 160_lookup_table.yaml.")
    elif place.is_file():
        files = [place]
    else:
        message = f"{place} does not exist."
        raise ConfigError(
            message,
            expected="a latency table, a folder of published ones, or the word macs.",
            remedy=f"measure one with `{MEASURE}`.",
        )
    if files[0].suffix == ".json":
        return _read_ours(files[0])
    return _read_published(place, files)


# --- published tables -----------------------------------------------------------------------------


def _read_published(place: Path, files: Sequence[Path]) -> LatencyTable:
    found: dict[int, Mapping[str, float]] = {}
    for file in files:
        operators = _means(file, _parse_yaml(file))
        resolution = _resolution(file, operators)
        if resolution in found:
            message = (
                f"{place} has two tables for resolution {resolution}, one of them {file.name}."
            )
            raise ConfigError(message, expected="one file a resolution.")
        found[resolution] = operators
    return LatencyTable(place.name, found)


def _parse_yaml(file: Path) -> Any:
    try:
        import yaml
    except ImportError as exc:
        message = "PyYAML is not installed, and published latency tables are YAML."
        raise BackendUnavailable(message, remedy="pip install 'opa-trt[build]'") from exc

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return yaml.load(file.read_bytes(), Loader=loader)
    except Exception as exc:  # ill-formed values escape PyYAML as KeyError, ValueError and others
        message = f"{file} is not readable YAML: {exc}."
        raise ConfigError(message) from exc


def _means(file: Path, parsed: Any) -> dict[str, float]:
    """Name to mean; every entry is ``{mean: ms, …}`` or a number of ms."""
    if not isinstance(parsed, dict) or not parsed:
        message = f"{file} holds no table."
        raise ConfigError(message, expected="{operator: {mean: milliseconds, …}, …}.")
    found = {}
    for name, entry in parsed.items():
        mean = entry.get("mean") if isinstance(entry, dict) else entry
        if isinstance(mean, bool) or not isinstance(mean, int | float) or not 0 <= mean <= LARGEST:
            message = f"{file}: {name} has the latency {mean!r}."
            raise ConfigError(message, expected="a mean in milliseconds, 0 or more.")
        found[str(name)] = float(mean)
    return found


def _resolution(file: Path, operators: Mapping[str, float]) -> int:
    sides = {int(match[1]) for name in operators if (match := STEM.match(name))}
    if len(sides) != 1:
        message = f"{file} has stem convolutions for {sorted(sides) or 'no'} resolutions."
        raise ConfigError(message, expected="one entry Conv-input:RxRx3-output:….")
    return sides.pop()


# --- our own --------------------------------------------------------------------------------------


def _read_ours(file: Path) -> LatencyTable:
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as exc:
        message = f"{file} is not readable JSON: {exc}."
        raise ConfigError(message) from exc
    if not isinstance(parsed, dict) or parsed.get("format") != FORMAT:
        message = f"{file} is not a latency table of ours."
        raise ConfigError(message, expected=f'"format": "{FORMAT}".')
    version = parsed.get("version")
    if not isinstance(version, int) or version > VERSION:
        message = f"{file} has version {version!r}."
        raise ConfigError(
            message, expected=f"at most {VERSION}.", remedy="install a newer opa-trt."
        )
    operators = _means(file, parsed.get("operators"))
    try:
        space = space_from_dict(parsed["space"])
        sides, facts = list(map(int, parsed["resolutions"])), dict(parsed["facts"])
        scale, offset = float(parsed["scale"]), float(parsed["offset"])
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        message = f"{file} lacks or misstates {exc}."
        raise ConfigError(message, remedy=f"measure it again with `{MEASURE}`.") from exc
    if not sides or not 0 < scale < math.inf or not math.isfinite(offset):
        message = f"{file} has resolutions {sides}, scale {scale}, offset {offset}."
        expected = "one resolution or more, a finite scale above 0, a finite offset."
        raise ConfigError(message, expected=expected, remedy=f"measure it again with `{MEASURE}`.")
    return LatencyTable(file.name, dict.fromkeys(sides, operators), scale, offset, space, facts)


def table_to_dict(table: LatencyTable) -> dict[str, Any]:
    """What ``read_latency`` reads back from JSON; only tables with a space can be written."""
    assert table.space is not None
    operators = table.by_resolution[table.resolutions[0]]
    return {
        "format": FORMAT,
        "version": VERSION,
        "space": table.space.to_dict(),
        "resolutions": list(table.resolutions),
        "scale": table.scale,
        "offset": table.offset,
        "operators": dict(operators),
        "facts": dict(table.facts),
    }
