"""What every step needs, imported once ahead of all of them; opens no device."""

import torch
import torch._dynamo  # noqa: F401  (copying a parameter imports it: seconds)

import dsn_kernels.measure  # noqa: F401
import dsn_models  # noqa: F401
