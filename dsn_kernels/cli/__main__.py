"""``python -m dsn_kernels.cli``: the same as ``dsn``."""

from . import main

main()
