"""What the GPU kernels are predicted to reach: docs/gpu-model.md."""
