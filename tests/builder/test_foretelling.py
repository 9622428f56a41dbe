"""R² of accuracies over groups: exact where a line holds, and judged on groups not fitted to."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from opa_trt.builder.foretelling import _split, correlations, foretell, pairwise

GROUPS = 200


def accuracies(seed: int = 0, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """A pioneer's, and those of three networks that follow it more and less closely."""
    draw = np.random.default_rng(seed)
    told = draw.uniform(0.3, 0.8, GROUPS)
    truth = np.stack([0.1 + s * told + noise * draw.standard_normal(GROUPS) for s in (1, 0.5, 0)])
    return told, truth


def test_a_line_is_foretold_exactly() -> None:
    told, _ = accuracies()
    found = foretell(told, np.stack([0.2 + 0.7 * told, 0.9 - 0.3 * told]), seed=0)
    assert found.by_deep == pytest.approx((1.0, 1.0))
    assert (found.r2, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_r2_is_that_of_linear_regression_on_the_groups_that_judge() -> None:
    told, truth = accuracies()
    fitted, judging = _split(GROUPS, 4)
    wanted = []
    for own in truth:
        line = LinearRegression().fit(told[fitted, None], own[fitted])
        wanted.append(r2_score(own[judging], line.predict(told[judging, None])))
    found = foretell(told, truth, seed=4)
    assert found.by_deep == pytest.approx(wanted)
    assert found.r2 == pytest.approx(np.mean(wanted))
    assert wanted[0] > wanted[1] > 0.5 > wanted[2]


def test_three_quarters_are_fitted_to_and_no_group_twice() -> None:
    fitted, judging = _split(GROUPS, 0)
    assert len(fitted) == 150
    assert sorted([*fitted, *judging]) == list(range(GROUPS))


def test_the_interval_holds_the_figure_and_shrinks_with_more_groups() -> None:
    told, truth = accuracies()
    wide = foretell(told, truth, seed=0)
    narrow = foretell(np.tile(told, 9), np.tile(truth, (1, 9)), seed=0)
    assert wide.low < wide.r2 < wide.high
    assert narrow.high - narrow.low < wide.high - wide.low


def test_a_network_that_never_varies_foretells_nothing() -> None:
    _, truth = accuracies()
    found = foretell(np.full(GROUPS, 0.5), truth, seed=0)
    assert max(found.by_deep) <= 0


def test_what_never_varies_counts_as_not_foretold() -> None:
    told, _ = accuracies()
    assert foretell(told, np.full((1, GROUPS), 0.7), seed=0).by_deep == (0.0,)


def test_a_network_foretells_itself() -> None:
    _, truth = accuracies()
    found = np.array(pairwise(truth, seed=0))
    assert np.diag(found) == pytest.approx(np.ones(3))
    assert found[0, 1] == pytest.approx(foretell(truth[0], truth, seed=0).by_deep[1])


def test_correlations_are_pearsons() -> None:
    _, truth = accuracies()
    np.testing.assert_allclose(correlations(truth), np.corrcoef(truth), atol=1e-9)


def test_the_same_seed_says_the_same() -> None:
    told, truth = accuracies()
    assert foretell(told, truth, seed=3) == foretell(told, truth, seed=3)
    assert foretell(told, truth, seed=3) != foretell(told, truth, seed=4)
