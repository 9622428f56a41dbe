"""Sizes: read as people write them, and written as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.errors import ConfigError
from opa_trt.store import EngineStore, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1234", 1234),
        ("500 MB", 500_000_000),
        ("500MB", 500_000_000),
        (" 2 GiB ", 2 * 2**30),
        ("1.5 kib", 1536),
        ("3 kB", 3000),
        ("1 TB", 10**12),
        ("7 b", 7),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1 G", "GB", "1e9", "nan", "1 2", "1,5 GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="500 MB") as caught:
        parse_size(text, "--limit")
    assert caught.value.received == f"{text!r} for --limit."


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (31_400_000, "31.4 MB"),
        (999_960, "1.0 MB"),
        (314_159_265, "314 MB"),
        (8 * 2**30, "8.6 GB"),
        (2 * 10**13, "20.0 TB"),
    ],
)
def test_a_size_is_written(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**15))
def test_what_is_written_can_be_read(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=0.5)


# --- the limit of a store -----------------------------------------------------------------------


def test_the_limit_is_8_gib_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPA_TRT_CACHE_LIMIT", raising=False)
    assert EngineStore().limit_bytes == 8 * 2**30


def test_the_limit_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE_LIMIT", "500 MB")
    assert EngineStore().limit_bytes == 500_000_000


def test_an_argument_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE_LIMIT", "500 MB")
    assert EngineStore(limit_bytes=7).limit_bytes == 7


def test_a_limit_that_is_no_size_says_which_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPA_TRT_CACHE_LIMIT", "plenty")
    with pytest.raises(ConfigError, match="'plenty' for OPA_TRT_CACHE_LIMIT"):
        EngineStore()


def test_a_limit_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        EngineStore(limit_bytes=-1)
