"""Training a super-network: data, progressive shrinking, distillation, exit heads."""
