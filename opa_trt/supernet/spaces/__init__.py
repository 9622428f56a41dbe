"""The spaces that exist, one a file; importing this package registers them all."""

from opa_trt.supernet.spaces.mobilenet_v3 import MobileNetV3Space
from opa_trt.supernet.spaces.proxyless import ProxylessSpace
from opa_trt.supernet.spaces.resnet50d import ResNet50DSpace

__all__ = ["MobileNetV3Space", "ProxylessSpace", "ResNet50DSpace"]
