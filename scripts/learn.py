"""Write the components of the tutorial yourself: `python scripts/learn.py start 08`, then `learn.py mine.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the specification is not an installed package

if __name__ == "__main__":
    from reference.errors import exit_with
    from spec.support.learn import main

    exit_with(main)
