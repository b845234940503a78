"""What runs in a model's place: whole networks, parts of networks, and what runs their graphs."""

from .model import CapturedModel
from .network import Accelerated, Result
from .part import Part
from .runner import RUNNERS, PlanRunner, make_runner
from .target import CPU, Target

__all__ = ["CPU", "RUNNERS", "Accelerated", "CapturedModel", "Part", "PlanRunner", "Result", "Target", "make_runner"]
