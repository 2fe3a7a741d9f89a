"""Neural tangent kernels: empirical ones, exact and proved, of any model."""

from mechfeat.ntk.empirical import PROVED, empirical_ntk, plan
from mechfeat.ntk.planner import Plan, PlanRow
from mechfeat.ntk.result import Coverage, NTKResult
from mechfeat.ntk.rules import register_rule

__all__ = ["PROVED", "Coverage", "NTKResult", "Plan", "PlanRow", "empirical_ntk", "plan", "register_rule"]
