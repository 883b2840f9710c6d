"""Check that this machine is ready: `python scripts/doctor.py`, see `--help`. Needs only Python."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  (the check of the version)
    sys.exit("!! Python        %d.%d: install Python 3.11 or newer" % sys.version_info[:2])  # noqa: UP031  (old ones)
sys.path.append(str(Path(__file__).parents[1]))  # where the project is not installed

from reference.doctor import Finding, examine
from reference.errors import exit_with
from reference.messages import choose_language, is_chinese, translated
from reference.text import COLUMNS, json_text, print_line, printable, width, wrapped

SIGNS = {"good": "ok", "note": "--", "wrong": "!!"}
DESCRIPTION = (
    "Check what a training needs on this machine: versions, devices, memory, data; and print a remedy for each "
    "problem. The exit status is 0 if a training can run, 1 if not."
)
LANGUAGE = "the language of messages: English, Chinese, or that of the system's locale"


def main() -> int:
    choose_language()
    parser = argparse.ArgumentParser(
        description="\n".join(wrapped(translated(DESCRIPTION), COLUMNS - 1)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    help_of_json = translated("print one JSON list instead of text")
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False, help=help_of_json)
    parser.add_argument("--lang", choices=("auto", "en", "zh"), default="auto", help=translated(LANGUAGE))
    words = parser.parse_args()
    findings = [*examine(), *differences(chinese=is_chinese() and not words.json)]
    if words.json:
        print(json_text([asdict(finding) for finding in findings], indent=2, encoding=sys.stdout.encoding))
    else:
        for finding in findings:
            show(f"{SIGNS[finding.state]} {padded(translated(finding.what))} ", finding.found)
            if finding.remedy:
                show(f"   {padded('')} → ", finding.remedy)
    return 1 if any(finding.state == "wrong" for finding in findings) else 0


def show(head: str, text: str) -> None:
    """Print `text` after `head`, wrapped to the columns at its right."""
    for line in wrapped(translated(printable(text)), COLUMNS - width(head)):
        print_line(head + line)
        head = " " * width(head)


def differences(*, chinese: bool) -> list[Finding]:
    """The behaviours in which the installed PyTorch differs from the newest release, if it can be imported."""
    try:
        from spec.support import versions

        reasons = versions.reasons(chinese=chinese)
    except Exception:  # PyTorch is missing or broken, which `examine` reports
        return []
    if not reasons:
        return []
    release, listed = versions.torch.__version__, ("；" if chinese else "; ").join(reasons)
    text = f"PyTorch {release} differs from the newest release in {len(reasons)} behaviours: {listed}"
    remedy = "a training needs none of them; to have them: python -m pip install --upgrade torch torchvision"
    return [Finding("differences", text, "note", remedy)]


def padded(text: str) -> str:
    """`text` padded to 13 columns; a Chinese character takes two."""
    return text + " " * (13 - width(text))


if __name__ == "__main__":
    exit_with(main)
