"""What each family minimises, one file per family.

A family joins by one line in :data:`OBJECTIVES`. If it has a table of its own in the recipe, that is a ``Section`` with
one line in ``dsn_models.training.recipe.Recipe`` (``table: TheSection | None = None``), and its objective names it in
``tables``. An unknown key in it is refused by name, and so is a table for another family. What the loop does with an
objective is told in :class:`Objective`.
"""

from __future__ import annotations

from torch import nn

from ... import zoo
from ...errors import UserError
from ..recipe import FAMILY_TABLES, OptimiserSection, Recipe
from .adaptive_time import AdaptiveTimeObjective
from .base import GATED_PHASES, Objective, Phase
from .constructed import ConstructedObjective
from .dual_skipping import DualSkippingObjective
from .gaternet import GaterNetObjective
from .layer_skippable import LayerSkippableObjective
from .single_task import SingleTaskObjective
from .skipnet import SkipNetObjective

# Families that are not named here have one task, trained by cross-entropy.
OBJECTIVES: dict[str, type[Objective]] = {
    "dual_skipping": DualSkippingObjective,
    "skipnet": SkipNetObjective,
    "gaternet": GaterNetObjective,
    "layer_skippable": LayerSkippableObjective,
    "adaptive_time": AdaptiveTimeObjective,
    "constructed": ConstructedObjective,
}

__all__ = ["OBJECTIVES", "Objective", "Phase", "make_objective"]


def make_objective(recipe: Recipe, model: nn.Module) -> Objective:
    """The objective of a recipe's model.

    Raises:
        UserError: the recipe has a table, or a key of a phase, that is for another family.
    """
    kind = OBJECTIVES.get(zoo.family_of(model), SingleTaskObjective)
    for table in FAMILY_TABLES:
        default = Recipe.model_fields[table].get_default(call_default_factory=True)
        if table not in kind.tables and getattr(recipe, table) != default:
            takes = f"takes {', '.join(f'[{name}]' for name in kind.tables)}" if kind.tables else "takes none"
            raise UserError(f"recipe {recipe.name}: table [{table}] is not for {recipe.model}, which {takes}")
    for key in GATED_PHASES:
        if key not in kind.phase_keys and getattr(recipe.train, key) != OptimiserSection.model_fields[key].default:
            takes = f"takes {', '.join(kind.phase_keys)}" if kind.phase_keys else "has one phase"
            raise UserError(f"recipe {recipe.name}: train.{key} is not for {recipe.model}, which {takes}")
    return kind(recipe)
