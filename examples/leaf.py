"""Give each phase of a torchvision network a shallow alternative, and say what each choice costs.

python examples/leaf.py mobilenet_v2
"""

import sys

import torch

from opa_trt.supernet.legacy import augment, require_torchvision

name = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
legacy = require_torchvision().models.get_model(name, weights=None).eval()  # or "IMAGENET1K_V1"
network = augment(legacy, name, ratio=0.25)

costs = network.costs(224)
share = costs.added_params / sum(parameter.numel() for parameter in legacy.parameters())
print(f"{name}: {len(network.phases)} phases, {share:.1%} more parameters")
for configuration in network.configurations():
    print(f"  {configuration!s:<18}{costs.of(configuration).macs / 1e6:>8.0f} M MACs")

with torch.no_grad():
    images = torch.rand(2, 3, 64, 64)
    unchanged = torch.equal(network(images, network.legacy_configuration), legacy(images))
print(f"the legacy network is unchanged: {unchanged}")
