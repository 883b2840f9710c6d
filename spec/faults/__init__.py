"""Wrong implementations that the specification must catch, each with the test named in `caught_by`.

A fault is a class that defines one or two components with a typical mistake. It can be tested like
any implementation: `pytest spec --impl spec.faults.convolution:KernelIsFlipped`. `spec/test_faults.py` verifies that
each fault is caught.
"""

import importlib
import pkgutil
import re
from pathlib import Path


class Fault:
    """A wrong implementation.

    Attributes:
        caught_by: `file::test`, under spec/: the test that must fail.
        says: A regular expression that its failure must contain: the reason, in words or numbers.
    """

    caught_by: str
    says: str

    @classmethod
    def implementation(cls) -> str:
        """The name of the fault for `--impl`."""
        return f"{cls.__module__}:{cls.__name__}"


def all_faults(mentioning: tuple[str, ...] = ()) -> list[type[Fault]]:
    """All faults of this package.

    Args:
        mentioning: If given, only modules that contain one of these words are imported, because importing the others
        may take long.
    """
    folder = Path(__path__[0])
    for module in pkgutil.iter_modules(__path__):
        text = (folder / f"{module.name}.py").read_text(encoding="utf-8") if mentioning else ""
        if not mentioning or any(re.search(rf"(?:def|class) {word}\b", text) for word in mentioning):
            importlib.import_module(f"{__name__}.{module.name}")
    return sorted(Fault.__subclasses__(), key=Fault.implementation.__func__)
