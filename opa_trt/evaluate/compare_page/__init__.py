"""The page that ``opa-trt compare`` writes: one file of HTML, and its plots as PNG files."""

from opa_trt.evaluate.compare_page.page import write_page

__all__ = ["write_page"]
