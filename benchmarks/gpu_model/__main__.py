"""``python -m benchmarks.gpu_model``."""

from .model import main

main()
