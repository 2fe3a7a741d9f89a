"""Evidence for a feature: does it do in the network what it seems to?"""

from mechfeat.evidence.ablation import AblationFinding, ablation_effect

__all__ = ["AblationFinding", "ablation_effect"]
