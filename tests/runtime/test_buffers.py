"""Memory belongs to one group at a time."""

from __future__ import annotations

import pytest
import torch

from opa_trt.device import Host
from opa_trt.errors import StaleLease
from opa_trt.runtime.buffers import Buffer
from opa_trt.tree import TensorSpec

SPEC = TensorSpec("features", (4, 2))


def test_a_lease_is_a_view_of_the_buffer() -> None:
    buffer = Buffer(SPEC, 8, Host())
    lease = buffer.lease(3)
    lease.tensor().fill_(7)
    assert lease.tensor().shape == (3, 4, 2)
    assert (lease.tensor() == 7).all()
    assert lease.tensor().is_contiguous()


def test_every_group_has_the_same_memory() -> None:
    buffer = Buffer(SPEC, 8, Host())
    one = buffer.lease(3).tensor().data_ptr()
    assert buffer.lease(8).tensor().data_ptr() == one


def test_the_dtype_is_the_specs() -> None:
    assert Buffer(TensorSpec("x", (2,), "uint8"), 4, Host()).lease(1).tensor().dtype == torch.uint8


def test_an_earlier_groups_lease_is_stale() -> None:
    buffer = Buffer(SPEC, 8, Host())
    earlier = buffer.lease(3)
    later = buffer.lease(3)
    with pytest.raises(StaleLease, match="lease 1 of a buffer now leased as 2"):
        earlier.tensor()
    assert later.tensor().shape == (3, 4, 2)


def test_leases_of_other_buffers_do_not_matter() -> None:
    one, other = Buffer(SPEC, 8, Host()), Buffer(SPEC, 8, Host())
    lease = one.lease(2)
    other.lease(2)
    assert lease.tensor().shape == (2, 4, 2)
