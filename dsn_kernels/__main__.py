"""``python -m dsn_kernels``: the same as ``dsn``."""

from .cli import main

main()
