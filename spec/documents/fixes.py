"""The fixes for the table of causes, applied to the syntax tree (libcst) or the text of a listing."""

import re
import textwrap
from collections.abc import Callable
from typing import Any

from spec.documents.causes import Cause
from spec.documents.extract import parsed
from spec.documents.names import IMPLIED, names_of

PUNCTUATION = str.maketrans("（），：；“”‘’。！？【】－＝＋\u3000", "(),:;\"\"''.!?[]-=+ ")


def apply(cause: Cause, code: str, line: int = 0) -> str:
    """The program with the fix for a cause; unchanged if there is no fix.

    Args:
        cause: The cause.
        code: The program.
        line: The line at which the error was raised, or 0.
    """
    if cause.fix in TEXT:
        return TEXT[cause.fix](code, line)
    if not cause.automatic or parsed(code) is None:
        return code
    import libcst

    try:
        tree = libcst.parse_module(code)
    except libcst.ParserSyntaxError:
        return code
    return tree.visit(_transformer(cause)).code


# On the text


def _print(code: str, _: int) -> str:
    return re.sub(r"(?m)^(\s*)print[ \t]+(?![(=])(.*?)[ \t]*(#.*)?$", _call_print, code)


def _call_print(found: re.Match[str]) -> str:
    text = found[2].rstrip()
    end = ', end=" "' if text.endswith(",") else ""
    comment = f"  {found[3]}" if found[3] else ""
    return f"{found[1]}print({text.rstrip(',')}{end}){comment}"


def _punctuation(code: str, _: int) -> str:
    made = []
    for part in re.split(r"(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#.*)", code):
        made.append(part if part[:1] in ("'", '"', "#") else part.translate(PUNCTUATION))
    return "".join(made)


def _colon(code: str, line: int) -> str:
    lines = code.splitlines()
    if 0 < line <= len(lines):
        text, hash_, comment = lines[line - 1].partition("#")
        lines[line - 1] = text.rstrip() + ":" + (f"  {hash_}{comment}" if hash_ else "")
    return "\n".join(lines)


def _dedent(code: str, line: int) -> str:
    whole = textwrap.dedent(code)
    if parsed(whole) is not None:
        return whole
    lines = code.expandtabs(4).splitlines()
    if 1 < line <= len(lines):
        above = next((text for text in reversed(lines[: line - 1]) if text.strip()), "")
        indent = re.match(r"\s*", above)
        lines[line - 1] = (indent[0] if indent else "") + lines[line - 1].lstrip()
    return "\n".join(lines)


def _import(code: str, _: int) -> str:
    missing = [name for name in names_of(code).needs if name in IMPLIED]
    lines = code.splitlines()
    place = next((i for i, text in enumerate(lines) if text.strip() and not text.lstrip().startswith("#")), 0)
    return "\n".join([*lines[:place], *(IMPLIED[name] for name in missing), *lines[place:]])


TEXT: dict[str, Callable[[str, int], str]] = {
    "print": _print,
    "punctuation": _punctuation,
    "colon": _colon,
    "dedent": _dedent,
    "import": _import,
    "async": lambda code, _: re.sub(r"\basync(\s*=)", r"non_blocking\1", code),
    "except": lambda code, _: re.sub(r"(?m)^(\s*except\s+\w+)\s*,\s*(\w+)\s*:", r"\1 as \2:", code),
    "raw_path": lambda code, _: re.sub(r"(?<![rRbBfF])([\"'])([A-Za-z]:\\)", r"r\1\2", code),
    "seaborn": lambda code, _: re.sub(r"([\"'])seaborn(?!-v0_8)", r"\1seaborn-v0_8", code),
    "state_dict_called": lambda code, _: re.sub(r"(\.state_dict)(?=\s*[,)\n])", r"\1()", code),
    "one_channel": lambda code, _: re.sub(
        r"(Normalize\s*\(\s*(?:mean\s*=\s*)?[\[(])\s*([\d.]+)\s*,[^\])]*([\])]\s*,\s*(?:std\s*=\s*)?[\[(])\s*([\d.]+)\s*,[^\])]*([\])])",
        r"\1\2,\3\4,\5",
        code,
    ),
    "volatile": lambda code, _: _volatile(code),
}


def _volatile(code: str) -> str:
    made = []
    for line in code.splitlines():
        less = re.sub(r",\s*volatile\s*=\s*True", "", line)
        if less != line:
            indent = re.match(r"\s*", line)
            blank = indent[0] if indent else ""
            made += [f"{blank}with torch.no_grad():", f"    {less}"]
        else:
            made.append(line)
    return "\n".join(made)


# On the syntax tree


def _transformer(cause: Cause) -> Any:
    import libcst as cst
    from libcst.helpers import get_full_name_for_node as full_name

    def dotted(text: str) -> Any:
        return cst.parse_expression(text)

    def keyword(text: str, value: str) -> Any:
        return cst.Arg(
            cst.parse_expression(value),
            cst.Name(text),
            equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
        )

    def named(call: Any) -> str:
        return (full_name(call.func) or (call.func.attr.value if isinstance(call.func, cst.Attribute) else "")) or ""

    def without(call: Any, *names: str) -> Any:
        kept = [arg for arg in call.args if arg.keyword is None or arg.keyword.value not in names]
        if kept:
            kept[-1] = kept[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return call.with_changes(args=kept)

    def given(call: Any, name: str) -> Any:
        return next((arg.value for arg in call.args if arg.keyword and arg.keyword.value == name), None)

    def code_of(node: Any) -> str:
        return cst.Module([]).code_for_node(node)

    class Transformer(cst.CSTTransformer):
        def leave_Attribute(self, original_node: Any, updated_node: Any) -> Any:
            name = full_name(original_node)
            if name in cause.rename:
                return dotted(cause.rename[name])
            attribute = updated_node.attr.value
            if attribute in cause.rename_attribute:
                return updated_node.with_changes(attr=cst.Name(cause.rename_attribute[attribute]))
            return updated_node

        def leave_Name(self, original_node: Any, updated_node: Any) -> Any:
            return cst.Name(cause.rename[updated_node.value]) if _plain(cause, updated_node.value) else updated_node

        def leave_ImportFrom(self, original_node: Any, updated_node: Any) -> Any:
            module = full_name(original_node.module) if original_node.module else ""
            if module in cause.rename_module:
                return updated_node.with_changes(module=dotted(cause.rename_module[module]))
            return updated_node

        def leave_Import(self, original_node: Any, updated_node: Any) -> Any:
            names = [
                alias.with_changes(name=dotted(cause.rename_module[full_name(alias.name) or ""]))
                if full_name(alias.name) in cause.rename_module
                else alias
                for alias in updated_node.names
            ]
            return updated_node.with_changes(names=names)

        def leave_Call(self, original_node: Any, updated_node: Any) -> Any:
            name = named(original_node)
            last = name.rpartition(".")[2]
            call = updated_node
            if last in cause.rename_method and isinstance(call.func, cst.Attribute):
                call = call.with_changes(func=call.func.with_changes(attr=cst.Name(cause.rename_method[last])))
            if cause.rename_keyword:
                args = [
                    arg.with_changes(keyword=cst.Name(cause.rename_keyword[arg.keyword.value]))
                    if arg.keyword and arg.keyword.value in cause.rename_keyword
                    else arg
                    for arg in call.args
                ]
                call = call.with_changes(args=args)
            for pattern, word in cause.drop:
                if re.fullmatch(pattern, last) and given(call, word) is not None:
                    call = without(call, word)
            special = getattr(self, f"_{cause.fix}", None) if cause.fix else None
            return special(call, name, last) if special else call

        def leave_Subscript(self, original_node: Any, updated_node: Any) -> Any:
            if cause.fix != "item" or code_of(updated_node.slice[0]).strip() != "0" or len(updated_node.slice) != 1:
                return updated_node
            value = updated_node.value
            is_data = isinstance(value, cst.Attribute) and value.attr.value == "data"
            if not is_data and "loss" not in code_of(value).lower():
                return updated_node
            inner = value.value if is_data else value
            return cst.Call(cst.Attribute(inner, cst.Name("item")))

        def _weights_only(self, call: Any, name: str, last: str) -> Any:
            if name == "torch.load" and given(call, "weights_only") is None:
                return call.with_changes(args=[*call.args, keyword("weights_only", "False")])
            return call

        def _weights_only_moves(self, call: Any, name: str, last: str) -> Any:
            value = given(call, "weights_only")
            if last != "load_state_dict" or value is None:
                return call
            call = without(call, "weights_only")
            first = call.args[0]
            if isinstance(first.value, cst.Call):
                inner = first.value.with_changes(args=[*first.value.args, keyword("weights_only", code_of(value))])
                call = call.with_changes(args=[first.with_changes(value=inner), *call.args[1:]])
            return call

        def _pretrained(self, call: Any, name: str, last: str) -> Any:
            value = given(call, "pretrained")
            args = list(call.args)
            if value is None:
                parts = name.split(".")
                constant = args and args[0].keyword is None and code_of(args[0].value) in ("True", "False")
                if not (constant and "models" in parts):
                    return call
                value, args = args[0].value, args[1:]
            else:
                args = list(without(call, "pretrained").args)
            weights = {"True": '"DEFAULT"', "False": "None"}.get(
                code_of(value), f'"DEFAULT" if {code_of(value)} else None'
            )
            return call.with_changes(args=[keyword("weights", weights), *args])

        def _variable(self, call: Any, name: str, last: str) -> Any:
            if last == "Variable" and len(call.args) == 1 and call.args[0].keyword is None:
                return call.args[0].value
            return call

        def _amp(self, call: Any, name: str, last: str) -> Any:
            if name in ("torch.cuda.amp.autocast", "torch.cuda.amp.GradScaler", "torch.cpu.amp.autocast"):
                kind = name.split(".")[1]
                args = [cst.Arg(cst.SimpleString(f'"{kind}"')), *call.args]
                return call.with_changes(func=dotted(f"torch.amp.{last}"), args=args)
            return call

        def _reduction(self, call: Any, name: str, last: str) -> Any:
            average, reduce = given(call, "size_average"), given(call, "reduce")
            if average is None and reduce is None:
                return call
            words = [code_of(value) if value is not None else "True" for value in (reduce, average)]
            reduction = "none" if words[0] == "False" else "mean" if words[1] == "True" else "sum"
            call = without(call, "size_average", "reduce")
            return call.with_changes(args=[*call.args, keyword("reduction", f'"{reduction}"')])

        def _set_to_none(self, call: Any, name: str, last: str) -> Any:
            if last == "zero_grad" and not call.args:
                return call.with_changes(args=[keyword("set_to_none", "False")])
            return call

        def _asarray(self, call: Any, name: str, last: str) -> Any:
            if name in ("np.array", "numpy.array") and given(call, "copy") is not None:
                return without(call, "copy").with_changes(func=dotted(name.replace("array", "asarray")))
            return call

        def _text_box(self, call: Any, name: str, last: str) -> Any:
            if last == "textsize":
                func = call.func.with_changes(attr=cst.Name("textbbox"))
                new = call.with_changes(func=func, args=[cst.Arg(dotted("(0, 0)")), *call.args])
            elif last == "getsize":
                new = call.with_changes(func=call.func.with_changes(attr=cst.Name("getbbox")))
            else:
                return call
            return dotted(f"{code_of(new)}[2:]")

        def _next(self, call: Any, name: str, last: str) -> Any:
            is_method = isinstance(call.func, cst.Attribute) and call.func.attr.value == "next" and not call.args
            return cst.Call(cst.Name("next"), [cst.Arg(call.func.value)]) if is_method else call

        def _detach(self, call: Any, name: str, last: str) -> Any:
            if isinstance(call.func, cst.Attribute) and call.func.attr.value == "numpy" and not call.args:
                inner = cst.Call(cst.Attribute(call.func.value, cst.Name("detach")))
                return call.with_changes(func=call.func.with_changes(value=inner))
            return call

        def _softmax_dim(self, call: Any, name: str, last: str) -> Any:
            functions = ("softmax", "log_softmax", "Softmax", "LogSoftmax", "softmin")
            positional = sum(arg.keyword is None for arg in call.args)
            needed = 0 if last[0:1].isupper() else 1
            if last in functions and given(call, "dim") is None and positional == needed:
                return call.with_changes(args=[*call.args, keyword("dim", "1")])
            return call

        def _scheduler_step(self, call: Any, name: str, last: str) -> Any:
            if last == "step" and "sched" in name.lower():
                return call.with_changes(args=[])
            return call

    return Transformer()


def _plain(cause: Cause, name: str) -> bool:
    """Whether a name without a dot has been renamed."""
    return name in cause.rename and "." not in name
