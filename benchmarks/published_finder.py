"""Once-for-all's own evolutionary finder, run beside ours: the peer of the search benchmark.

The package ``ofa`` is installed without its dependencies, which the finder does not need:

    pip install --no-deps --target benchmarks/.peers ofa==0.1.0.post202307202001
"""

from __future__ import annotations

import random
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml

INSTALL = "pip install --no-deps --target benchmarks/.peers ofa==0.1.0.post202307202001"
PEERS = Path(__file__).resolve().parent / ".peers"


class PublishedFinder:
    """The finder of ``ofa.tutorial`` with the published predictor and latency tables.

    Args:
        predictor: the published weights (``.npz``).
        tables: the folder of the published tables.
    """

    def __init__(self, predictor: Path, tables: Path) -> None:
        self._finder, accuracy, latency = _modules()
        self.accuracy = accuracy.AccuracyPredictor(pretrained=False, device="cpu")
        weights = {key: torch.from_numpy(value) for key, value in np.load(predictor).items()}
        self.accuracy.model.load_state_dict(weights)
        self.latency = latency.LatencyTable.__new__(latency.LatencyTable)  # its init downloads
        self.latency.latency_tables = {
            int(path.name.split("_")[0]): latency.LatencyEstimator(url=str(path))
            for path in sorted(tables.glob("*.yaml"))
        }

    def search(self, target: float, generations: int, seed: int) -> tuple[float, dict[str, Any]]:
        """The best accuracy (0 to 1) at ``target`` ms, and the arch as a dictionary."""
        random.seed(seed)
        np.random.seed(seed)
        finder = self._finder.EvolutionFinder(
            "note10", target, self.latency, self.accuracy, max_time_budget=generations
        )
        _, (accuracy, arch, _) = finder.run_evolution_search()
        return float(accuracy), arch


def _modules() -> list[Any]:
    """The finder, the accuracy predictor and the latency table, loaded file by file.

    ``ofa.tutorial`` itself would import torchvision and more.
    """
    folder = _folder()
    for name, members in {
        "tqdm": {"tqdm": lambda values, **_: values},  # the bar; without it the peer is faster
        "ofa": {},
        "ofa.utils": {"download_url": _refuse},
    }.items():
        if name != "tqdm" or util.find_spec("tqdm") is None:
            stub = ModuleType(name)
            vars(stub).update(members)
            sys.modules[name] = stub
    found = []
    for name in ("evolution_finder", "accuracy_predictor", "latency_table"):
        spec = util.spec_from_file_location(f"ofa_tutorial_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    # Written for PyYAML 5, whose load needed no loader.
    found[2].yaml = ModuleType("yaml")
    found[2].yaml.load = yaml.safe_load
    return found


def _folder() -> Path:
    places = [PEERS / "ofa" / "tutorial"]
    spec = util.find_spec("ofa")
    if spec is not None and spec.submodule_search_locations:
        places.append(Path(next(iter(spec.submodule_search_locations))) / "tutorial")
    for place in places:
        if (place / "evolution_finder.py").is_file():
            return place
    message = f"The published finder is not installed. In the repository's folder:\n  {INSTALL}"
    raise SystemExit(message)


def _refuse(*_: object, **__: object) -> None:
    message = "the published finder wanted to download something"
    raise RuntimeError(message)
