"""Chapter 00: the program's messages in Chinese: the table is complete, and a message keeps its variable parts."""

import ast
import inspect
import re
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import strategies as st

from reference import messages
from reference.chinese import TABLE
from reference.command_line import explanations
from reference.recipes import ABLATION
from spec.support.clauses import clause
from spec.support.messages import ROOT, sources, templates
from spec.support.strategies import given

sys.path.append(str(ROOT / "scripts"))

COMMANDS = tuple(
    getattr(import_module(script), name)
    for script, name in (
        *(("accuracy", "Measurement"), ("predict", "Question"), ("export", "Export")),
        ("check_document", "Question"),
    )
)


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_chinese", True)


@clause("00.messages.complete")
@pytest.mark.slow
def test_each_message_of_the_program_has_a_chinese_translation() -> None:
    missing = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in sources()
        for text, line in templates(path).items()
        if text.strip() not in TABLE and text not in TABLE
    ]
    assert missing == []
    assert [name for name in ABLATION if name not in TABLE] == []


@clause("00.messages.complete")
@pytest.mark.parametrize("kind", COMMANDS)
def test_each_line_of_help_has_a_chinese_translation(kind: type) -> None:
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(kind.__doc__ or "").split("\n\n")]
    titles = list(getattr(kind, "GROUPS", {}))
    assert [text for text in [*explanations(kind).values(), *paragraphs, *titles] if text not in TABLE] == []


@clause("00.messages.complete")
def test_a_message_without_a_translation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        "def f(x):\n    y = f'{x} of them'\n    print_line(f'there are {y} here')\n    raise InputError('no such')\n"
        "def introduction():\n    return 'an introduction'\n"
    )
    assert set(templates(file)) == {"there are {} here", "{} of them", "no such"} | (
        {"an introduction"}  # one of the functions that return a message
    )


@clause("00.messages.complete")
def test_translations_keep_the_placeholders_of_the_message() -> None:
    for text, chinese in TABLE.items():
        if "default" in text:  # the help text inserts the value itself, untranslated
            continue
        numbers = sorted(re.findall(r"\{(\d)\}", chinese))
        assert numbers == [str(number) for number in range(text.count("{}"))], text


@clause("00.messages.filled")
@pytest.mark.usefixtures("chinese")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("error: --batch-size must be at least 1, got 0", "错误：--batch-size 至少为 1，得到的是 0"),
        ("epoch 3/10", "epoch 3/10"),
        ("1 of 2 cores", "2 个核心中的 1 个"),
        ("what no table has", "what no table has"),
        ("note: there are {0} {} \\1", "注意：there are {0} {} \\1"),
        (
            "no CIFAR-10 in a: neither the folder x nor the archive y is there; put one of them there or use "
            "--download",
            "a 中没有 CIFAR-10：既没有文件夹 x，也没有压缩包 y；请放入其中之一，或使用 --download",
        ),
    ],
)
def test_variable_parts_are_inserted_and_translated(text: str, expected: str) -> None:
    assert messages.translated(text) == expected


@clause("00.messages.filled")
@pytest.mark.usefixtures("chinese")
def test_user_names_equal_to_program_words_are_not_translated() -> None:
    for name in (text for text in TABLE if " " not in text.strip()):
        line = f"most confused: {name} taken for x, 3 images"
        assert messages.translated(line) == f"最常混淆：{name} 被判为 x，3 images"
    assert messages.translated("images: 4 training and 2 test images of 2 classes").startswith("images：4 张")


@clause("00.messages.filled")
@pytest.mark.slow
@given(values=st.lists(st.text(max_size=8), min_size=9, max_size=9), number=st.integers(0, 10**6))
def test_a_formatted_message_is_recognized_for_all_values(values: list[str], number: int) -> None:
    template = messages._TEMPLATES[number % len(messages._TEMPLATES)]
    pieces = template.pieces
    text = "".join(piece + value for piece, value in zip(pieces, [*values[: len(pieces) - 1], ""], strict=True))
    parts = messages.parts_of(text, template)
    assert parts is not None
    assert "".join(piece + part for piece, part in zip(pieces, [*parts, ""], strict=True)) == text


@clause("00.messages.filled")
@pytest.mark.parametrize(("english", "chinese"), [("error: ", "错误："), ("note: ", "注意：")])
def test_messages_are_translated_after_error_and_note_prefixes(english: str, chinese: str) -> None:
    wrong = []
    for text in TABLE:
        message = text.replace("{}", "X1")
        if " " in message.strip() and not text.startswith(english):
            line = messages.in_chinese(english + message)
            if line != chinese + messages.in_chinese(message):
                wrong.append(line)
    assert wrong == []


@clause("00.messages.language")
@pytest.mark.parametrize(
    ("arguments", "locale", "chinese"),
    [
        ((), "zh_CN.UTF-8", True),
        ((), "en_US.UTF-8", False),
        ((), "C", False),
        (("--lang", "zh"), "C", True),
        (("x", "--lang=zh"), "C", True),
        (("--lang", "en"), "zh_CN.UTF-8", False),
        (("--lang", "auto"), "zh_TW", True),
    ],
)
def test_language_follows_the_lang_option_then_the_locale(
    arguments: tuple[str, ...], locale: str, chinese: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "_chinese", not chinese)
    monkeypatch.setenv("LC_ALL", locale)
    messages.choose_language(arguments=arguments)
    assert messages.is_chinese() is chinese


@clause("00.messages.counted")
def test_a_count_has_a_noun_in_the_singular_or_the_plural(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_chinese", False)
    assert [messages.counted(n, "image") for n in (0, 1, 2, 1000)] == [
        "0 images",
        "1 image",
        "2 images",
        "1,000 images",
    ]
    assert [messages.counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
    monkeypatch.setattr(messages, "_chinese", True)
    assert [messages.counted(n, "image") for n in (1, 2)] == ["1 张图像", "2 张图像"]


PLURALS = re.compile(r" (tests|components|epochs|listings|threads|reports|test images)\b")


@clause("00.messages.counted")
@pytest.mark.slow
def test_no_text_of_the_program_puts_a_plural_after_a_number() -> None:
    folders = ("reference", "scripts", "spec/support", "spec/report", "spec/documents", "spec/mutation")
    found = []
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found += [
                    f"{path.relative_to(ROOT)}:{node.lineno}: {text.value}"
                    for value, text in pairwise(node.values)
                    if isinstance(value, ast.FormattedValue)
                    and isinstance(text, ast.Constant)
                    and PLURALS.match(str(text.value))
                ]
    assert found == []
