"""The spaces that exist, one a file; importing this package registers them all."""

from opa_trt.supernet.spaces.mobilenet_v3 import MobileNetV3Space

__all__ = ["MobileNetV3Space"]
