"""The listings of a document: fenced and indented code of Markdown, cells of notebooks, each with its kind."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

PYTHON = {"python", "py", "python3", "py3", "ipython", "ipython3", "pycon", "pytorch", "code-cell", "python3.8"}
OUTPUT = {"", "text", "txt", "output", "console", "plain", "plaintext", "out", "none", "log", "stdout", "result"}
SHELL = {"bash", "sh", "shell", "zsh", "bat", "cmd", "powershell", "ps1", "terminal", "shell-session", "fish"}
FRAMEWORKS = ("mxnet", "tensorflow", "jax", "paddle", "mindspore")
"""Frameworks of books that show the same listing for several of them (`#@tab mxnet`)."""

_COMMAND = re.compile(
    r"^\s*(?:[$#] +)?(?:!|pip3? |conda |python3? [\w./-]+|tensorboard |nvidia-smi|git |cd |apt|wget |"
    r"curl |sudo |mkdir |source |export |ls\b|uv |torchrun |jupyter |brew |unzip |tar |\./)"
)
_CODE = re.compile(
    r"^(?:\s*(?:import \w|from [\w.]+ import|def \w+\s*\(|class \w+|for .+ in .+:|with .+:|if .+:|while .+:|@\w)"
    r"|[A-Za-z_][\w.\[\], ]*\s*[-+*/]?=[^=]|\s*print\s*\(|>>> )",
    re.MULTILINE,
)
_PRINTED = re.compile(
    r"^\s*(?:Traceback \(most recent|[\w.]*(?:Error|Exception|Warning): |tensor\(|torch\.Size\(|array\(|[A-Z]\w*\(\s*$|"
    r"\(\w+\): \w+\(|Epoch\b|\[\d|Out\[\d+\]|[-+]?\d+(?:\.\d+)?%?\s*$|[\w\u4e00-\u9fff /.()-]+[:：]\s*[-+\d.]|.*[├└│])"
)
_ELLIPSIS = re.compile(
    r"^\s*#?\s*(?:\.\.\.|…+|⋮|#\s*(?:省略|略|此处省略|你的代码|TODO|your code|code here|omitted))", re.I | re.M
)
_FILE = re.compile(r"(?<![\w/.-])((?:[\w-]+/)*[A-Za-z_]\w*\.py)\b")
_MAGIC = re.compile(r"^(\s*)(?:([\w.]+(?:\s*,\s*[\w.]+)*)\s*=\s*)?(?:%{1,2}[A-Za-z]|!|\?)")


@dataclass(frozen=True)
class Listing:
    """A listing.

    Attributes:
        line: The line of its fence, or of its first line of code if it has no fence; 1 in a notebook.
        first: The line of its first line of code in the document, or in the cell of a notebook.
        printed: The listing as shown in the document.
        language: The language that its fence names.
        kind: "python", "output" (what a program printed), "shell", "other" (another language or framework) or
            "fragment" (Python, but not meant to be run: pseudo-code, a signature, an excerpt).
        code: The code to run. It has the same lines as `printed`, so that line numbers agree.
        cell: The number of the cell in its notebook, from 1; 0 in Markdown.
        before: The text between the listing before it and this one, with the headings.
        after: The text up to the next listing.
        file: The name of the file that the document gives it, or "".
        outputs: The documented outputs, as pairs of a line number within `code` (0: the end of the listing) and the
            text.
        reason: The reason why it is not a program: a word for the report, or "".
        error_shown: The error that the document shows under it, or "".
    """

    line: int
    first: int
    printed: str
    language: str
    kind: str
    code: str
    cell: int = 0
    before: str = ""
    after: str = ""
    file: str = ""
    outputs: tuple[tuple[int, str], ...] = ()
    reason: str = ""
    error_shown: str = ""
    interactive: bool = field(default=False)

    def place(self, number: int) -> int:
        """The line in the document, or in the cell, of a line of the code."""
        return self.first + number - 1

    @property
    def tree(self) -> ast.Module | None:
        """Its syntax tree; None if it is not valid Python."""
        return parsed(self.code)


def parsed(code: str) -> ast.Module | None:
    """The syntax tree of a program, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def read(path: Path) -> list[Listing]:
    """The listings of a document, in its order.

    Raises:
        ValueError: the file is not a valid notebook.
        OSError: the file cannot be read.
    """
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    found = list(_notebook(text)) if path.suffix == ".ipynb" else list(_markdown(text))
    return _with_outputs(found)


# Markdown


def _markdown(text: str) -> Iterator[Listing]:
    from markdown_it import MarkdownIt

    lines = text.splitlines()
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    blocks = [token for token in tokens if token.type in ("fence", "code_block") and token.map]
    end = 0
    for number, token in enumerate(blocks):
        start, stop = token.map or [0, 0]
        following = (blocks[number + 1].map or [len(lines)])[0] if number + 1 < len(blocks) else len(lines)
        info = token.info.strip()
        fenced = token.type == "fence"
        line = start + 1
        yield _listing(
            token.content.rstrip("\n"),
            language=_language(info),
            line=line,
            first=line + fenced,
            before="\n".join(lines[end:start]),
            after="\n".join(lines[stop:following]),
            fenced=fenced,
            info=info,
        )
        end = stop


def _language(info: str) -> str:
    """The language of a fence: the first word of its info, also as `{.python .input}` and `{code-cell} ipython3`."""
    words = re.findall(r"[A-Za-z][\w.+-]*", info)
    return words[0].lower() if words else ""


def _listing(
    printed: str,
    *,
    language: str,
    line: int,
    first: int,
    before: str = "",
    after: str = "",
    fenced: bool = True,
    cell: int = 0,
    info: str = "",
) -> Listing:
    kind, reason = "python", ""
    text = printed.replace("\xa0", " ")
    if language in SHELL:
        kind = "shell"
    elif (language not in PYTHON and language not in OUTPUT) or _of_another_framework(text, info):
        kind = "other"
    made = Listing(line, first, printed, language, kind, text, cell, before, after, _named(before, text))
    if kind != "python":
        return made
    if re.match(r"^\s*(?:>>> ?|In \[\d*\]: ?)", text):
        return _interactive(made)
    code = _without_magics(text)
    if code is None:
        return replace(made, kind="shell", code=text)
    labelled = language in PYTHON
    kind, reason, code = _judged(code, labelled=labelled, fenced=fenced)
    if kind == "python" and parsed(code) is None:
        said = next((text for text in reversed(before.splitlines()) if text.strip()), "")
        if len(said) < 40 and re.search(
            r"输出|结果|打印|显示|\b(?:outputs?|out|prints?|result)\b", said, re.IGNORECASE
        ):
            kind, reason = "output", "output"
        elif re.search(r"^\s*\$ ", code, re.MULTILINE):
            kind, reason = "shell", ""
    return replace(made, kind=kind, reason=reason, code=code)


def _of_another_framework(text: str, info: str) -> bool:
    """Whether a book marks a listing as the one for another framework."""
    names = "|".join(FRAMEWORKS)
    marked = re.search(rf"^\s*(?:#@tab|%%tab)\s+(?:{names})", text, re.MULTILINE)
    return marked is not None or (re.search(rf"\b(?:{names})\b", info) is not None and "pytorch" not in info)


def _named(before: str, text: str) -> str:
    """The name of the file that a listing is, from its first comment, its heading, or the sentence before it."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("#") and (found := _FILE.search(first)):
        return found[1]
    last = [line for line in before.splitlines() if line.strip()][-3:]
    for line in reversed(last):
        if (found := _FILE.search(line)) and "http" not in line:
            return found[1]
    return ""


def _interactive(listing: Listing) -> Listing:
    """A session with prompts: the code follows the prompts, and the lines between are outputs."""
    code: list[str] = []
    outputs: list[tuple[int, str]] = []
    shown: list[str] = []
    start = 0

    def close() -> None:
        if start and any(line.strip() for line in shown):
            outputs.append((start, "\n".join(shown).strip("\n")))
        shown.clear()

    inside = False
    for number, line in enumerate(listing.code.splitlines(), start=1):
        prompt = re.match(r"^\s*(?:>>> ?|In \[\d*\]: ?)(.*)$", line)
        more = re.match(r"^\s*(?:\.\.\. ?|\s+\.\.\.: ?)(.*)$", line) if inside else None
        if prompt:
            close()
            start, inside = number, True
            code.append(prompt[1])
        elif more:
            code.append(more[1])
        else:
            inside = False
            shown.append(re.sub(r"^\s*Out\[\d*\]: ?", "", line))
            code.append("")
    close()
    text = "\n".join(code)
    error = next(
        (found[1] for _, out in outputs if (found := re.search(r"^(\w*(?:Error|Exception))\b", out, re.M))), ""
    )
    return replace(listing, code=text, outputs=tuple(outputs), interactive=True, error_shown=error)


def _without_magics(text: str) -> str | None:
    """The code without IPython and shell lines, with the same line numbers; None if there are no other lines."""
    if re.match(r"^\s*%%(?:bash|sh|script|html|javascript|js|latex|cmd|perl|ruby|svg|markdown)\b", text):
        return None
    if parsed(text) is None or text.lstrip().startswith("?"):
        lines, hit = [], False
        for line in text.splitlines():
            found = _MAGIC.match(line)
            if found or re.match(r"^\s*[\w.]+\?{1,2}\s*$", line):
                hit = True
                indent = found[1] if found else ""
                lines.append(f"{indent}{found[2]} = []" if found and found[2] else f"{indent}pass")
            else:
                lines.append(line)
        if hit:
            text = "\n".join(lines)
    rest = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if rest and all(line.strip() == "pass" for line in rest):
        return None
    plain = [line for line in rest if line.strip() != "pass"]
    if plain and parsed(text) is None and all(_COMMAND.match(line) for line in plain):
        return None
    return text


def _judged(code: str, *, labelled: bool, fenced: bool) -> tuple[str, str, str]:
    """The kind of a listing, the reason, and its code without an indentation that all its lines share."""
    if not code.strip():
        return "other", "empty", code
    tree = parsed(code)
    if tree is None and (found := re.match(r"^( +|\t+)\S", code.lstrip("\n"))):
        less = textwrap.dedent(code)
        width = len(found[1].expandtabs(4))
        if less != code and parsed(less) is not None and (width % 2 == 0 or not labelled):
            code, tree = less, parsed(less)
    if tree is not None:
        if not tree.body:
            return ("fragment", "comments", code) if labelled else ("output", "output", code)
        if not labelled and not _CODE.search(code):
            return "output", "output", code
        if _only_values(tree):
            return "output", "output", code
        return "python", "", code
    if _is_output(code, labelled=labelled):
        return "output", "output", code
    if not labelled and (not fenced or not _CODE.search(code)):
        return "output", "output", code
    if not labelled and _share_of_code(code) < 0.6:
        return "output", "output", code
    if reason := _is_excerpt(code):
        return "fragment", reason, code
    return "python", "", code


def _share_of_code(code: str) -> float:
    lines = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    return sum(bool(_CODE.match(line) or re.search(r"[()\[\]=:]\s*$|\w\(", line)) for line in lines) / max(
        len(lines), 1
    )


def _only_values(tree: ast.Module) -> bool:
    """Whether a program consists only of printed values: `tensor([1., 2.])`, `torch.Size([2, 3])`."""

    def literal(node: ast.expr, printed: bool = False) -> bool:
        match node:
            case ast.Constant():
                return True
            case ast.UnaryOp(operand=operand):
                return literal(operand)
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                return all(literal(element, True) for element in elements)
            case ast.Dict(values=values):
                return all(literal(value, True) for value in values)
            case ast.Name(id=name):
                return printed and name in ("nan", "inf")
            case ast.Call(func=function, args=arguments, keywords=keywords):
                name = ast.unparse(function)
                return name in ("tensor", "array", "torch.Size", "Size", "Parameter", "device", "OrderedDict") and all(
                    literal(value, True) or keyword for keyword, value in _values(arguments, keywords)
                )
        return False

    return all(
        isinstance(node, ast.Expr)
        and literal(node.value)
        and not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) and len(tree.body) == 1)
        for node in tree.body
    )


def _values(arguments: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[tuple[bool, ast.expr]]:
    yield from ((False, value) for value in arguments)
    yield from ((True, keyword.value) for keyword in keywords)


def _is_output(code: str, *, labelled: bool) -> bool:
    """Whether lines that are not valid Python are the output of a program."""
    lines = [line for line in code.splitlines() if line.strip()]
    content = [line for line in lines if not line.lstrip().startswith("#")]
    if not content:
        return True
    if re.match(r"^\s*(?:Traceback \(most recent|[\w.]*(?:Error|Exception|Warning)\b\s*:|-{20,})", content[0]):
        return True
    if re.search(r"^\s*\(\w+\): \w+", code, re.MULTILINE) and re.match(r"^\s*\w+\s*\(", content[0]):
        return True
    if re.match(r"^\s*#\s*(?:输出|运行结果|结果|output|out\b)", lines[0], re.IGNORECASE):
        return True
    printed = sum(bool(_PRINTED.match(line)) for line in content)
    return printed > len(content) / 2 or (not labelled and not _CODE.search(code))


def _is_excerpt(code: str) -> str:
    """The kind of a listing that cannot be parsed: "pseudo-code", "signature", "excerpt" or ""."""
    left_out = _ELLIPSIS.search(code) or re.search(r"<[a-z][\w -]* ?(?:here|code|path)?>|\.{3}(?!\w)(?![\]\d,])", code)
    if left_out and not _python_2(code):
        return "pseudo-code"
    content = [line for line in code.splitlines() if line.strip() and not line.strip().startswith("#")]
    whole = " ".join(content)
    if re.search(r"(?:→|->)\s*\w+\s*$", whole) or re.match(r"^(?:class|def)\s+\w+(?:\.\w+)+\s*\(", whole):
        return "signature"
    if (
        len(content) == 1
        and re.match(r"^[\w.]+\([\w\s,=*.\[\]()'\"-]*\)?$", whole)
        and re.search(r"=[^,]+,\s*\w+\s*[,)]", whole)
    ):
        return "signature"
    if re.match(r"^(?:case|elif .+:|else:|except.*:|finally:)", content[0].strip()):
        return "excerpt"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        if "expected an indented block" in str(error):
            number = error.lineno or 0
            lines = code.splitlines()
            around = [line.strip() for line in lines[max(number - 3, 0) : number]]
            if number >= len(lines) or any(line.startswith("#") for line in around[:-1]) or around[-1:] == [""]:
                return "excerpt"
    return ""


def _python_2(code: str) -> bool:
    return re.search(r"^\s*print\s+[\"'\w]", code, re.MULTILINE) is not None


def has_ellipsis(code: str) -> bool:
    """Whether a listing omits parts: `...` outside of an index, or a comment that says so."""
    if _ELLIPSIS.search(code):
        return True
    tree = parsed(code)
    if tree is None:
        return False
    indices = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Subscript) for part in ast.walk(node.slice)}
    return any(
        isinstance(node, ast.Constant) and node.value is Ellipsis and id(node) not in indices for node in ast.walk(tree)
    )


# Notebooks


def _notebook(text: str) -> Iterator[Listing]:
    import nbformat

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            book = nbformat.reads(text, as_version=4)
    except Exception as error:  # the exceptions of nbformat depend on the error
        raise ValueError(f"no notebook: {error}") from None
    kernel = book.metadata.get("kernelspec", {}).get(
        "language", book.metadata.get("language_info", {}).get("name", "python")
    )
    before = ""
    for number, cell in enumerate(book.cells, start=1):
        if cell.cell_type != "code":
            before += cell.source + "\n"
            continue
        source = cell.source
        language = "python" if kernel in ("", "python") else kernel
        made = _listing(source, language=language, line=1, first=1, before=before, cell=number)
        written = re.match(r"^\s*%%(?:writefile|file)\s+(?:-a\s+)?(\S+)", source)
        if written:
            code = "\n".join(["", *source.splitlines()[1:]])
            made = replace(made, kind="other", reason="file", code=code, file=written[1])
        outputs, error = _cell_outputs(cell)
        if outputs:
            made = replace(made, outputs=((0, outputs),))
        yield replace(made, error_shown=error or made.error_shown)
        before = ""


def _cell_outputs(cell: dict) -> tuple[str, str]:
    """The output of a cell when the notebook was saved, and the name of the error that ended it."""
    texts, error = [], ""
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.get("name") == "stdout":
            texts.append("".join(output.text))
        elif output.output_type == "execute_result" and "text/plain" in output.data:
            texts.append("".join(output.data["text/plain"]) + "\n")
        elif output.output_type == "error":
            error = output.ename
    return "".join(texts), error


# Outputs


def _with_outputs(listings: list[Listing]) -> list[Listing]:
    """Assign to each listing the output block directly below it."""
    found = list(listings)
    for number, (listing, following) in enumerate(pairwise(listings)):
        if listing.kind != "python" or following.kind != "output" or listing.cell:
            continue
        between = [line.strip() for line in listing.after.splitlines() if line.strip()]
        if len(between) > 2 or sum(map(len, between)) > 60:
            continue
        error = re.search(r"^\s*([\w.]*(?:Error|Exception))\b", following.printed, re.MULTILINE)
        shown = error[1].rpartition(".")[2] if error else ""
        outputs = listing.outputs if error else (*listing.outputs, (0, following.printed))
        found[number] = replace(listing, outputs=outputs, error_shown=listing.error_shown or shown)
    return found
