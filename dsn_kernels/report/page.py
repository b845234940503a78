"""What pages are made of: templates, images, and rows of cells that show what ran."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dsn_models.lettering import shortened

if TYPE_CHECKING:
    import jinja2


def template(name: str) -> jinja2.Template:
    """A page of the package's assets."""
    import jinja2  # only here: most commands write no page

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dsn_kernels", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["ms"] = lambda value: f"{value:.2f}" if value < 100 else f"{value:.0f}"
    environment.filters["mega"] = lambda value: f"{value / 1e6:.2f} M"
    environment.filters["shortened"] = shortened
    return environment.get_template(name)


def png(image: Tensor) -> str:
    """An image [C, H, W], 1 or 3 channels in [0, 1], as a data URL."""
    from matplotlib.image import imsave

    pixels = image.clamp(0, 1)
    array = pixels.permute(1, 2, 0).numpy() if len(pixels) == 3 else pixels.mean(0).numpy()
    buffer = io.BytesIO()
    imsave(buffer, array, cmap="gray", vmin=0, vmax=1, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def by_block(values: Sequence[Any], blocks: Sequence[int]) -> list[Sequence[Any]]:
    """``values`` cut into groups of the sizes ``blocks``."""
    groups, first = [], 0
    for count in blocks:
        groups.append(values[first : first + count])
        first += count
    return groups
