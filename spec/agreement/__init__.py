"""Comparison of the reference and PyTorch on random calls of every component, with valid and invalid arguments.

python -m spec.agreement --calls 200 --seed 1 [COMPONENT ...]
"""

from spec.agreement import losses, sequence, spatial
from spec.agreement.comparison import Draw, Verdict, verdicts

__all__ = ["COMPONENTS", "Verdict", "verdicts"]

COMPONENTS: dict[str, Draw] = spatial.COMPONENTS | losses.COMPONENTS | sequence.COMPONENTS
