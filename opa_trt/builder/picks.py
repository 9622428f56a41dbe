"""What the online search takes, before there is a predictor: a provisional one, and its picks.

Candidates spread evenly over MACs say what accuracy depends on. A predictor is fitted to them, on
groups that differ in content; the online search takes tails by it, over groups and requirements;
those are measured as well. Fitted again to all of them, the predictor says how often each that was
measured would be taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from opa_trt.builder.entries import PIONEER
from opa_trt.builder.fit import Floats, Records, draw_groups, fit_estimator, fit_predictor
from opa_trt.builder.tails import Trials, candidates
from opa_trt.policies import Estimator, Predictor
from opa_trt.search.online import OnlineSearch, Tails
from opa_trt.supernet import Arch

GROUPS = 40  # that the predictor is fitted to; it hardly gains from more
LEVELS = 5  # of the pioneer's accuracy that stand for the groups
STEPS = 24  # requirements, evenly over the logarithm of MACs
STARTS, ENTRIES = 8, 200  # tables, of which the search takes the best, and archs in each


@dataclass(frozen=True)
class Setting:
    """The pioneer behind which tails are tried, and what it answers on the choosing images.

    Args:
        pioneer: its arch.
        exit_macs: of its exit head, for one image.
        logits: ``[N, C] float32``.
        right: where they are right, ``[N] bool``.
        condition: which kind of content each image is, ``[N] int64``.
        group_size: images decided on together.
        seed: of groups, predictors and searches.
    """

    pioneer: Arch
    exit_macs: int
    logits: Floats
    right: npt.NDArray[np.bool_]
    condition: npt.NDArray[np.int64]
    group_size: int
    seed: int

    @cached_property
    def estimator(self) -> Estimator:
        """Of the pioneer's accuracy.

        Raises:
            BackendUnavailable: scikit-learn is missing.
        """
        records = Records(self.logits, {PIONEER: self.right}, self.condition)
        return fit_estimator(records, PIONEER)


@dataclass(frozen=True)
class Provisional:
    """A predictor of accuracies on groups, fitted to tails that were tried.

    Args:
        predictor: (estimated accuracy of the pioneer, code) to accuracy.
        estimates: of the pioneer's accuracy on the groups, ``[G]``.
    """

    predictor: Predictor
    estimates: Floats

    def search(self, searches: Sequence[OnlineSearch]) -> list[Arch]:
        """What the online search takes, the most often taken of every requirement first.

        One search begins at one arch of its table and keeps its depths, so for each group and
        requirement the best of several counts. Groups share the candidates of a requirement: they
        take different ones for their content alone. Latencies are in proportion to MACs.

        Args:
            searches: by this predictor, with tables of their own.
        """
        unit = searches[0].pioneer_macs  # a MAC takes 1 ms
        ranked = []
        for draw, macs in enumerate(requirements(searches[0].table_macs)):
            taken: Counter[Arch] = Counter()
            for estimated, groups in self._levels():
                picks = [one.search(estimated, macs, unit, draw=draw) for one in searches]
                taken[max(picks, key=lambda pick: pick.accuracy).arch] += groups
            ranked.append([arch for arch, _ in taken.most_common()])
        rounds = zip_longest(*ranked)
        return list(dict.fromkeys(arch for found in rounds for arch in found if arch is not None))

    def choices(self, macs: Sequence[float], codes: Floats) -> list[int]:
        """How often each arch is the best that fits, over all groups and requirements.

        Args:
            macs: of each, ``[T]``.
            codes: of each, ``[T, E]``.
        """
        fits = np.asarray(macs) <= np.array(requirements(macs))[:, None]
        found = np.zeros(len(codes), dtype=np.int64)
        for estimated, groups in self._levels():
            accuracy = self.predictor.accuracies(estimated, codes)
            np.add.at(found, np.where(fits, accuracy, -1.0).argmax(axis=1), groups)
        return [int(count) for count in found]

    def _levels(self) -> list[tuple[float, int]]:
        """The estimates from low to high in a few parts: their means, and how many groups each."""
        parts = np.array_split(np.sort(self.estimates), min(LEVELS, len(self.estimates)))
        return [(float(part.mean()), len(part)) for part in parts]


def requirements(macs: npt.ArrayLike) -> list[float]:
    """MACs from the fewest of some archs to the most, evenly over their logarithm."""
    costs = np.asarray(macs, dtype=np.float64)
    low, high = float(costs.min()), float(costs.max())
    return [low, *np.geomspace(low, high, STEPS)[1:-1].tolist(), high]


def fit_provisional(trials: Trials, setting: Setting) -> Provisional:
    """The predictor of the tails that were tried so far.

    Raises:
        BackendUnavailable: scikit-learn is missing.
    """
    names = [f"tail{place}" for place in range(len(trials.archs))]
    right = dict(zip(names, trials.right, strict=True))
    groups = draw_groups(
        Records(setting.logits, right, setting.condition),
        names,
        setting.estimator,
        groups=GROUPS,
        size=setting.group_size,
        seed=setting.seed,
    )
    return Provisional(
        fit_predictor([(groups, _codes(trials))], seed=setting.seed), groups.estimated
    )


def try_picks(trials: Trials, setting: Setting, count: int) -> list[int]:
    """Try ``count`` more tails, those that the online search takes; then, how often each is best.

    Where it takes fewer that were not tried, evenly spread ones are tried in their place.

    Returns:
        For every tail of ``trials`` how often it would be taken of all that were tried.
    """
    cut, known = trials.cut, set(trials.archs)
    spread = candidates(cut, setting.pioneer, len(known) + count, setting.seed)
    with _one_thread():
        first = fit_provisional(trials, setting)
        tails = Tails(cut.supernet.space, setting.pioneer, cut.stages)
        taken = first.search(
            [
                OnlineSearch(
                    tails,
                    first.predictor,
                    exit_macs=setting.exit_macs,
                    entries=ENTRIES,
                    seed=STARTS * setting.seed + start,
                )
                for start in range(STARTS)
            ]
        )
    new = dict.fromkeys(arch for arch in (*taken, *spread) if arch not in known)
    trials.measure(list(new)[:count])
    with _one_thread():
        return fit_provisional(trials, setting).choices(trials.macs, _codes(trials))


def _one_thread() -> AbstractContextManager[object]:
    """Matrices this small take longer on several threads, and very long on a busy machine."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # it comes with scikit-learn, which is missed where it is needed
        return nullcontext()
    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def _codes(trials: Trials) -> Floats:
    space = trials.cut.supernet.space
    return np.stack([space.encode(arch) for arch in trials.archs])
