"""The recorded sessions of docs/learn.md and docs/learn.zh-CN.md: files, changes, commands and terminal output.

In document order, a python block is written to mine.py, a diff block changes its lines, and the commands of a bash
block run if a text block with their output follows. `python -m spec.support.walk` records both documents anew.
"""

import os
import re
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path

DOCUMENTS = {
    "en_US.UTF-8": Path(__file__).parents[2] / "docs/learn.md",
    "zh_CN.UTF-8": Path(__file__).parents[2] / "docs/learn.zh-CN.md",
}
_BLOCK = re.compile(r"```(python|diff|bash|text)\n(.*?)```", re.DOTALL)


def recorded(text: str, folder: Path, language: str) -> str:
    """A document with the current output of its commands.

    Raises:
        ValueError: a change does not fit the file.
    """
    from spec.support import learn

    os.environ.update(LC_ALL=language, COLUMNS="80", TERM="dumb", NO_COLOR="1")
    mine, shown = folder / "mine.py", ""

    def follow(block: re.Match[str]) -> str:
        nonlocal shown
        kind, content = block[1], block[2]
        if kind == "text":
            return f"```text\n{shown}```"
        if kind == "python":
            mine.write_text(content, encoding="utf-8")
        elif kind == "diff":
            code = mine.read_text(encoding="utf-8")
            old, new = ("".join(f"{line[1:]}\n" for line in content.splitlines() if line[0] == s) for s in "-+")
            if code.count(old) != 1:
                raise ValueError(f"the change does not fit mine.py:\n{content}")
            mine.write_text(code.replace(old, new), encoding="utf-8")
        elif text[block.end() :].lstrip().startswith("```text"):
            output = StringIO()
            for command in content.splitlines():
                sys.argv = command.removeprefix("python scripts/").split()
                sys.argv.pop(0)
                sys.argv.insert(0, "learn.py")
                with redirect_stdout(output):
                    learn.main()
            shown = "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())
        return block[0]

    with chdir(folder):
        return _BLOCK.sub(follow, text)


def main(language: str, answer: str) -> None:
    """Record the document of a language into a file."""
    with tempfile.TemporaryDirectory() as folder:
        text = recorded(DOCUMENTS[language].read_text(encoding="utf-8"), Path(folder), language)
    Path(answer).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for _language, _document in DOCUMENTS.items():
        main(_language, str(_document))
