"""Variables of MATLAB's files, as some data sets publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError


def read_matlab(path: Path, names: tuple[str, ...], squeeze: bool = True) -> dict[str, Any]:
    """The variables ``names`` of a file of MATLAB 5, the form of ``save`` before version 7.3; no code in it runs.

    Dimensions of one are left out if ``squeeze``.

    Raises:
        UserError: the file is missing, damaged or of another form, or a variable is not in it.
    """
    from scipy.io import loadmat  # scipy comes with scikit-learn; it takes its time to import

    if not path.is_file():
        raise UserError(f"no {path.name} in {path.parent}; expected the data set as it is published")
    try:
        found = loadmat(str(path), squeeze_me=squeeze, variable_names=list(names))
    except Exception as error:  # of damaged bytes scipy's reader may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is no file of MATLAB, or cut short ({reason}); download it again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{path} has no variable {missing[0]!r}; expected {', '.join(names)}: download it again")
    return {name: found[name] for name in names}
