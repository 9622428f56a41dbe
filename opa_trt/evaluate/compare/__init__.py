"""Every policy on the same engines, images and load: what ``opa-trt compare`` runs and reports."""

from opa_trt.evaluate.compare.comparison import (
    Comparison,
    compare,
    on_the_cpu,
    on_the_gpu,
    replay,
)
from opa_trt.evaluate.compare.folder import check_new, write
from opa_trt.evaluate.compare.images import Data, read_data
from opa_trt.evaluate.compare.records import Records, read_records
from opa_trt.evaluate.compare.settings import Settings

__all__ = [
    "Comparison",
    "Data",
    "Records",
    "Settings",
    "check_new",
    "compare",
    "on_the_cpu",
    "on_the_gpu",
    "read_data",
    "read_records",
    "replay",
    "write",
]
