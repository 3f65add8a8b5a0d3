"""The methods as pure functions of per-token signals. Read methods.py first, then surrogate.py.

Stable: `rlad_log_ratio`, `anchor_logps`, `clipped_surrogate`, `group_advantages`. Imports torch and nothing else.
"""

from .advantages import all_wrong, group_advantages, zero_variance_groups
from .methods import (
    GRPO,
    HDPO,
    KDRL,
    METHODS,
    OPD,
    RLAD,
    RLSD,
    SRPO,
    KDRLAnnealed,
    KDRLMask,
    Method,
    OPDThenGRPO,
    RLADSchedule,
)
from .ratios import anchor_logps, rlad_log_ratio
from .reduce import fixed_length, sequence_mean, token_mean
from .signals import TokenSignals, token_signals
from .spans import spread_spans
from .surrogate import ObjectiveTerms, clip_branches, clipped_surrogate, objective_terms

__all__ = [
    "GRPO",
    "HDPO",
    "KDRL",
    "METHODS",
    "OPD",
    "RLAD",
    "RLSD",
    "SRPO",
    "KDRLAnnealed",
    "KDRLMask",
    "Method",
    "OPDThenGRPO",
    "ObjectiveTerms",
    "RLADSchedule",
    "TokenSignals",
    "all_wrong",
    "anchor_logps",
    "clip_branches",
    "clipped_surrogate",
    "fixed_length",
    "group_advantages",
    "objective_terms",
    "rlad_log_ratio",
    "sequence_mean",
    "spread_spans",
    "token_mean",
    "token_signals",
    "zero_variance_groups",
]
