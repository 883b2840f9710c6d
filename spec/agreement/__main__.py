"""Print how often the reference and PyTorch agree, component by component; exit with 1 if they ever differ."""

import argparse
import sys
from collections import Counter

import torch

from spec.agreement import COMPONENTS, verdicts


def main() -> int:
    """Run the requested calls, print the table, and show the first calls that differ."""
    parser = argparse.ArgumentParser(prog="python -m spec.agreement", description=__doc__)
    parser.add_argument("components", nargs="*", metavar="COMPONENT", help=f"default: all of {', '.join(COMPONENTS)}")
    parser.add_argument("--calls", type=int, default=200, help="calls per component")
    parser.add_argument("--seed", type=int, default=0, help="which calls are drawn")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--show", type=int, default=3, help="differing calls to print per component")
    chosen = parser.parse_args()
    if unknown := [name for name in chosen.components if name not in COMPONENTS]:
        parser.error(f"no component {', '.join(unknown)}; there are {', '.join(COMPONENTS)}")

    print(f"torch {torch.__version__}, seed {chosen.seed}")
    print(f"{'component':<30}{'calls':>8}{'agreed':>8}{'both raised':>13}{'differ':>8}")
    total: Counter[str] = Counter()
    for component in chosen.components or COMPONENTS:
        counts: Counter[str] = Counter()
        for verdict in verdicts(component, COMPONENTS[component], chosen.calls, chosen.seed, chosen.first):
            counts[verdict.outcome] += 1
            if verdict.problem and counts["differ"] <= chosen.show:
                print(f"{verdict.repeat}\n    {verdict.problem}", file=sys.stderr)
        agreed, raised, differ = (counts[outcome] for outcome in ("agreed", "both raised", "differ"))
        print(f"{component:<30}{chosen.calls:>8}{agreed:>8}{raised:>13}{differ:>8}", flush=True)
        total += counts
    return 1 if total["differ"] else 0


if __name__ == "__main__":
    sys.exit(main())
