"""Rules: how the gradient of a parameter follows from a call that receives it.

A rule belongs to a torch function, not to a module class, so a module, a functional use of its weight, a tied weight and a
bare parameter are one case. A rule may be wrong: the completeness proof decides, and what fails goes to the exact path.
"""

from mechfeat.ntk.rules import (
    conv,
    elementwise,
    embedding,
    linear,
    norm,
)
from mechfeat.ntk.rules.registry import Call, Unfit, Use, register_rule, registrations, rule_for

__all__ = ["Call", "Unfit", "Use", "conv", "elementwise", "embedding", "linear", "norm", "register_rule", "registrations", "rule_for"]
