"""The error that a user's mistake raises."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave, told in one line: what was given, what was expected, what to do."""
