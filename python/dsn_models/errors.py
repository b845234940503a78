"""The error that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave, told in one line: what was given, what was expected, what to do.

    >>> import dsn_models
    >>> try:
    ...     dsn_models.create("concat-41")
    ... except dsn_models.UserError as error:
    ...     print(str(error).split(";")[0])
    unknown model 'concat-41'
    """


def expected(given: object, known: Iterable[str], kind: str = "") -> str:
    """What was meant by a word that is unknown: the known ones near it, or all.

    >>> expected("resnet-2O", ["resnet-20", "lenet"])
    'near it: resnet-20'
    >>> expected("vgg", ["resnet-20", "lenet"], "a file or ")
    'expected a file or one of resnet-20, lenet'
    """
    known = list(known)
    close = difflib.get_close_matches(str(given), known, n=4, cutoff=0.6)
    return f"near it: {', '.join(close)}" if close else f"expected {kind}one of {', '.join(known)}"
