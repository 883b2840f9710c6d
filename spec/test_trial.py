"""Tests of the trial: judged and absent components, the text of failures, and refused options."""

import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import reference
from spec.support.clauses import CLAUSES
from spec.support.command import Result, run
from spec.support.implementations import ImplementationError, load
from spec.support.outcomes import NotOffered, NotWritten, Offer, comes_from, judged_nothing
from spec.support.plugin import is_own
from spec.support.report import Trial, lines

ROOT = Path(__file__).parents[1]

RIGHT = """
from torch.nn import Linear, functional

def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
"""
STRIDE_IGNORED = RIGHT.replace("bias, stride,", "bias, 1,")
SLOW = pytest.mark.slow


def trial(
    folder: Path,
    *arguments: str,
    chapter: str = "08_convolution",
    mine: str | None = None,
    processes: tuple[str, ...] = ("-n", "0"),
) -> Result:
    """`pytest spec/test_<chapter>.py --impl mine.py …` with that file, in one process by default."""
    if mine is not None:
        (folder / "mine.py").write_text(mine, encoding="utf-8")
        arguments = ("--impl", "mine.py", *arguments)
    where = (str(ROOT / f"spec/test_{chapter}.py"), "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"))
    options = ("--hypothesis-profile", "faults", "-p", "no:cacheprovider", "-p", "no:randomly", *processes)
    # the process is forked from one that has imported jaxtyping and Hypothesis already, which are plugins too
    options += ("-W", "ignore::pytest.PytestAssertRewriteWarning")
    return run("pytest", *where, *options, *arguments, folder=folder)


# Implementations under test


WARNS = RIGHT.replace("    return", "    import warnings\n    warnings.warn('{text}', {category})\n    return")


@pytest.mark.parametrize("category", ["DeprecationWarning", "UserWarning", "FutureWarning", "RuntimeWarning"])
@pytest.mark.slow
def test_warnings_do_not_fail_third_party_implementations(category: str, tmp_path: Path) -> None:
    """Warnings of the project's own code fail a test; warnings of other code do not."""
    warns = WARNS.format(text="old", category=category)
    result = trial(tmp_path, "-k", "documented", mine=warns)
    assert result.status == 0, result.out
    assert trial(tmp_path, "-k", "documented", mine=warns.replace("padding, dilation", "0, dilation")).status == 1


NOT_OFFERED = """
from spec.support.outcomes import NotOffered

def test_without_a_component():
    raise NotOffered("no parameter x")

def test_of_a_component(relu):
    raise NotOffered("no parameter x")
"""


@pytest.mark.slow
def test_a_test_without_a_component_cannot_end_without_a_verdict(tmp_path: Path) -> None:
    (tmp_path / "test_judged.py").write_text(NOT_OFFERED)
    where = ("test_judged.py", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "-p", "conftest")
    options = ("-n", "0", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
    result = run("pytest", *where, "--impl", "reference", *options, folder=tmp_path)
    assert result.status == 1, result.err
    assert "Failed: no parameter x, but the test is about no implementation" in result.out
    assert "1 failed, 1 not offered" in result.out


def test_a_warning_of_pytorch_about_itself_fails_no_test() -> None:
    """A warning attributed to a file of the project fails the test."""

    def warn(module: str) -> None:
        warnings.warn_explicit("this is old", DeprecationWarning, f"{module}.py", 1, module=module)

    with warnings.catch_warnings(record=True) as seen:
        warn("torch.optim.lr_scheduler")
        warn("torch")
        assert [str(warning.message) for warning in seen] == ["this is old"] * 2
        for module in ("reference.nn.linear", "torch_mine"):
            with pytest.raises(DeprecationWarning, match="this is old"):
                warn(module)


def test_the_reference_must_not_warn() -> None:
    assert is_own("reference")
    assert is_own("reference.definitions")
    assert not any(map(is_own, ["torch", "torchvision.transforms.v2", "mine.py", "references", "spec.faults.loss:X"]))


@pytest.mark.slow
def test_a_file_that_defines_one_function_gets_a_report_of_that_function_only(tmp_path: Path) -> None:
    result = trial(tmp_path, "-k", "documented or padding", mine=RIGHT)
    assert result.status == 0, result.out
    assert re.search(r"mine: 1 component under test, \d+ passed\n    conv2d +tutorial \d+/\d+ ", result.out)
    assert "    Linear" not in result.out  # imported from PyTorch: not the learner's work
    assert "not tested: mine.py imports Linear from PyTorch\n" in result.out


@pytest.mark.parametrize(
    ("mine", "judged", "left_out"),
    [
        ("from torch.nn import Linear", [], ["Linear"]),
        ("from torch.nn.functional import conv2d, relu", [], ["conv2d", "relu"]),
        ("from torch.nn import *\nclass Linear(Linear): pass", ["Linear"], None),
        ("from torch_mine import relu", ["relu"], []),
        ("from torchlike import relu", ["relu"], []),
        ("import torch\nconv2d = torch.conv2d", ["conv2d"], []),
        ("import torch\nconv2d, relu = torch.conv2d, torch.relu", ["conv2d", "relu"], []),
        ("import torch.nn\nLinear: type = torch.nn.Linear", ["Linear"], []),
        ("from torch.nn import Linear\n__all__ = ['Linear']", ["Linear"], []),
        ("from torch import relu\nfrom functools import partial\nconv2d = partial(relu)", ["conv2d"], ["relu"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_only_components_written_in_a_file_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: str, judged: list[str], left_out: list[str] | None
) -> None:
    for name in ("torch_mine", "torchlike"):
        (tmp_path / f"{name}.py").write_text("def relu(input): return input.clamp(min=0)\n", encoding="utf-8")
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "mine.py").write_text(mine, encoding="utf-8")
    implementation = load(str(tmp_path / "mine.py"))
    assert sorted(implementation.components) == sorted(judged)
    assert left_out is None or sorted(implementation.left_out) == sorted(left_out)


@pytest.mark.parametrize(
    "mine", [pytest.param("", id="nothing"), pytest.param("import torch\n", id="an import", marks=SLOW)]
)
@pytest.mark.slow
def test_a_file_that_defines_no_component_fails_as_an_empty_run(tmp_path: Path, mine: str) -> None:
    result = trial(tmp_path, mine=mine)
    assert result.status == 5, result.out
    assert "empty run: nothing of mine was judged" in result.out
    assert "passed" not in result.out


@pytest.mark.slow
def test_a_run_prints_the_number_of_covered_clauses(tmp_path: Path) -> None:
    result = trial(tmp_path, "-k", "documented", mine=RIGHT)
    # the two documented matrices of chapter 08; absent components cover no clause
    assert f"clauses: 2 of {len(CLAUSES)} covered by the tests of this run" in result.out
    result = trial(tmp_path, "-k", "documented", mine="def relu(input, inplace=False):\n    return input\n")
    assert f"clauses: 0 of {len(CLAUSES)} covered by the tests of this run" in result.out


@pytest.mark.slow
def test_absent_components_are_counted_and_never_passed(tmp_path: Path) -> None:
    result = trial(
        tmp_path,
        "--impl",
        "torch",
        "-k",
        "prints_as_documented or documented_sizes or same_padding",
        chapter="09_convolution_layer",
    )
    assert result.status == 0, result.out
    assert re.search(r"torch: 1 component under test, 1 passed, 8 absent\n", result.out), result.out
    assert "absent: conv2d_output_size, same_padding" in result.out
    assert re.search(r"1 passed, \d+ deselected, 8 absent", result.out)


@pytest.mark.slow
@pytest.mark.parametrize(("named", "status"), [((), 0), (("--impl", "torch"), 5)], ids=["nobody named", "named"])
def test_a_chapter_without_components_of_the_named_implementation_is_an_empty_run(
    tmp_path: Path, named: tuple[str, ...], status: int
) -> None:
    result = trial(tmp_path, *named, "-k", "test_impossible", chapter="20_inference")
    assert result.status == status, result.out
    assert ("empty run: nothing of torch was judged" in result.out) == (status == 5)


def test_a_trial_without_components_does_not_count_them() -> None:
    """The tests of benchmarks name no component."""
    timed = Trial(outcomes=Counter(passed=2))
    assert lines({"torch": timed, "mine": Trial()}, every_component=False) == [
        "torch: 2 passed",
        "mine: 0 components under test, no test",
    ]


@pytest.mark.slow
def test_with_impl_complete_an_absent_component_fails(tmp_path: Path) -> None:
    arguments = ("--impl-complete", "-k", "documented or same_padding")
    result = trial(tmp_path, "--impl", "torch", *arguments, chapter="09_convolution_layer")
    assert result.status == 1, result.out
    assert "absent: torch does not define conv2d_output_size" in result.out
    assert "8 errors" in result.out


@pytest.mark.slow
def test_tests_without_a_component_are_left_out_when_an_implementation_is_named(tmp_path: Path) -> None:
    result = trial(tmp_path, mine=RIGHT, chapter="07_module")
    assert result.status == 5, result.out
    assert "4 deselected" in result.out


@pytest.mark.slow
def test_a_module_and_a_namespace_in_it_can_be_under_test(tmp_path: Path) -> None:
    names = "torch.nn.functional,spec.faults.convolution:KernelIsFlipped"
    result = trial(tmp_path, "--impl", names, "-k", "stride_1")
    assert result.status == 1, result.out
    assert re.search(r"torch.nn.functional: 1 component under test, 1 passed\n", result.out)
    assert re.search(r"spec.faults.convolution:KernelIsFlipped: 1 component under test, 1 failed\n", result.out)


@pytest.mark.slow
def test_the_header_names_versions_device_and_options(tmp_path: Path) -> None:
    result = trial(tmp_path, "--impl", "reference,torch", "--dtype", "float64,float32", "-k", "stride_1")
    assert re.search(r"under test: reference \d+\.\d+\.\d+, torch 2\.\S+\n", result.out)
    assert re.search(r"torch 2\S+, Python 3\S+, device cpu, \d+ threads?, float64, float32, seed ", result.out)


OPERATOR = """
import torch
def conv2d(input, weight, bias=None, stride=1, padding=0):
    return torch.ops.aten.conv2d(input, weight, bias, [stride, stride], [padding, padding])
"""


@pytest.mark.slow
def test_several_processes_report_the_same_as_one(tmp_path: Path) -> None:
    # without the properties, because the number of their examples depends on their time
    words = ("--level", "tutorial")
    alone, together = (trial(tmp_path, "-n", number, *words, mine=STRIDE_IGNORED) for number in ("0", "2"))
    report = re.compile(r"mine: 1 component under test, .*\n.*\n")
    assert alone.status == together.status == 1
    assert report.findall(alone.out) == report.findall(together.out) != []


@pytest.mark.slow
def test_pytorch_compiled_can_be_under_test(tmp_path: Path) -> None:
    result = trial(tmp_path, "--impl", "torch-compile", "-k", "documented or shifted or bias_is_added")
    assert result.status == 0, result.out
    assert re.search(r"torch-compile: 1 component under test, 4 passed\n", result.out)


# Levels


LOOPS = """
import torch

def conv2d(x, kernel, stride=1, padding=0):
    n, c, h, w = x.shape
    o, _, kh, kw = kernel.shape
    padded = torch.zeros(n, c, h + 2 * padding, w + 2 * padding, dtype=x.dtype)
    padded[:, :, padding : padding + h, padding : padding + w] = x
    out = torch.zeros(
        n, o, (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1, dtype=x.dtype
    )
    for b in range(n):
        for k in range(o):
            for y in range(out.shape[2]):
                for z in range(out.shape[3]):
                    window = padded[b, :, y * stride : y * stride + kh, z * stride : z * stride + kw]
                    out[b, k, y, z] = (window * kernel[k]).sum()
    return out
"""
"""A beginner's convolution: other parameter names, integers only, and neither bias nor dilation nor groups."""


@pytest.mark.slow
def test_plain_loops_with_the_arguments_of_the_chapter_pass_level_tutorial(tmp_path: Path) -> None:
    result = trial(tmp_path, "--level", "tutorial", mine=LOOPS)
    assert result.status == 0, result.out
    assert re.search(r"mine: 1 component under test, 12 passed, 1 not offered, [1-9]\d* not claimed\n", result.out), (
        result.out
    )
    assert "    not offered: conv2d has no parameter bias: 1 test\n" in result.out
    assert re.search(
        r"    not claimed: level definition: \d+ tests\n    not claimed: level pytorch: \d+ tests\n", result.out
    )


@pytest.mark.slow
def test_tests_excluded_by_aspect_or_dtype_are_not_claimed(tmp_path: Path) -> None:
    where = {"mine": RIGHT, "chapter": "14_loss"}
    loss = "from torch.nn.functional import *\n__all__ = ['l1_loss']\n"
    result = trial(tmp_path, "--without", "errors,low-precision", "-k", "l1_loss", **where | {"mine": loss})  # pyright: ignore[reportArgumentType]
    assert result.status == 0, result.out
    assert re.search(r"    not claimed: aspect errors: \d+ tests\n    not claimed: low-precision: \d+ test", result.out)
    result = trial(tmp_path, "--aspect", "gradients", "-k", "l1_loss", **where | {"mine": loss})  # pyright: ignore[reportArgumentType]
    assert re.search(r"mine: 1 component under test, [1-9] passed, \d+ not claimed\n", result.out), result.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--aspect", "beauty"), "--aspect must be among values, gradients, "),
        (("--without", "values,half"), "--without must be among values, gradients, "),
    ],
)
@pytest.mark.slow
def test_an_unknown_aspect_is_reported_in_one_line(tmp_path: Path, words: tuple[str, str], says: str) -> None:
    result = trial(tmp_path, *words)
    assert result.status == 4, result.out
    assert says in result.err


@pytest.mark.slow
def test_code_that_is_not_written_yet_is_neither_passed_nor_failed(tmp_path: Path) -> None:
    stub = "def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):\n"
    result = trial(tmp_path, mine=f"{stub}    raise NotImplementedError('over to you')\n")
    assert result.status == 5, result.out
    assert re.search(r"    not written: over to you: \d\d tests\n", result.out), result.out
    assert "empty run: nothing of mine was judged" in result.out


def called(offer: Offer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The arguments of a call, or why it is not offered; pytest would count a test with this error as not offered."""
    try:
        return offer.call(args, kwargs)
    except NotOffered as error:
        return str(error)


@pytest.mark.parametrize(
    ("signature", "args", "kwargs", "becomes"),
    [
        ("input, weight", (1, 2), {}, ((1, 2), {})),
        ("x, kernel, shift, step", (1, 2), {"stride": 3}, ((1, 2), {"step": 3})),
        ("x, kernel, stride=1", (1, 2, None, 3), {}, ((1, 2), {"stride": 3})),
        ("x, kernel, stride=1", (1, 2, None), {"dilation": (1, 1), "groups": 1}, ((1, 2), {})),
        ("x, w, stride=1", (1, 2), {"dilation": 2}, "dilation"),
        ("x, w, stride=1", (1, 2, None, 3, 0, 1, 1, 9), {}, ""),
        ("x, w, stride=1", (1, 2, 3), {}, "bias"),
        ("x, w, stride=1", (1, 2), {"padding": "same"}, "padding"),
        ("x, w", (1, 2), {"padding": True}, "padding"),
        ("*args, **options", (1, 2, 3), {"groups": 2}, ((1, 2, 3), {"groups": 2})),
        ("input, weight, **options", (1, 2), {"groups": 2}, ((1, 2), {"groups": 2})),
        ("input, weight", (1, 2), {"strides": 2}, ((1, 2), {"strides": 2})),
    ],
)
def test_a_parameter_that_the_signature_lacks_is_not_offered(
    signature: str, args: tuple[Any, ...], kwargs: dict[str, Any], becomes: Any
) -> None:
    offer = Offer("conv2d", eval(f"lambda {signature}: None"), reference.conv2d)
    expected = f"conv2d has no parameter {becomes}" if isinstance(becomes, str) else becomes
    assert called(offer, args, kwargs) == expected


@pytest.mark.parametrize(
    ("signature", "lacks"),
    [
        ("input, weight", ["bias", "stride", "padding", "dilation", "groups"]),
        ("x, kernel, shift, step", ["padding", "dilation", "groups"]),
        ("x, kernel, stride=1", ["bias", "padding", "dilation", "groups"]),
        ("input, weight, *rest", ["bias", "stride", "padding", "dilation", "groups"]),
        ("input, weight, **options", []),
        ("*args, **options", []),
    ],
)
def test_an_offer_lists_the_parameters_that_the_signature_lacks(signature: str, lacks: list[str]) -> None:
    assert Offer("conv2d", eval(f"lambda {signature}: None"), reference.conv2d).lacks == lacks


def test_a_component_without_a_known_signature_lacks_no_parameter() -> None:
    assert Offer("conv2d", min, reference.conv2d).lacks == []


def test_only_an_equal_number_is_the_default() -> None:
    offer = Offer("norm", lambda x: None, lambda input, eps=1e-5: None)
    assert called(offer, (1,), {"eps": float("1e-5")}) == ((1,), {})
    for other in (2e-5, torch.tensor(1e-5, dtype=torch.float64), None):
        assert called(offer, (1,), {"eps": other}) == "norm has no parameter eps"


def test_a_component_may_take_variable_arguments_where_pytorch_has_none() -> None:
    offer = Offer("flatten", lambda x: None, lambda input, *rest, start=1, **options: None)
    assert offer.lacks == ["start"]


def raised(by: Callable[[], Any]) -> BaseException:
    """The error of a call, with its traceback."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of any kind)
        by()
    return caught.value


def _unwritten() -> None:
    raise NotImplementedError


def _unwritten_with_text() -> None:
    raise NotImplementedError("over to you")


def test_an_error_comes_from_the_file_that_raised_it() -> None:
    here = raised(_unwritten)
    assert comes_from(here, __file__)
    assert not comes_from(here, "another.py")
    assert not comes_from(here, None)
    assert not comes_from(NotImplementedError(), __file__)
    assert not comes_from(raised(lambda: re.compile("(")), __file__)  # called here, raised in another file


@pytest.mark.parametrize(
    ("by", "file", "says"),
    [(_unwritten_with_text, __file__, "over to you"), (_unwritten, __file__, "NotImplementedError"),
     (_unwritten, None, None), (lambda: int("a"), __file__, None)],
    ids=["with a text", "without a text", "of another file", "another error"],
)  # fmt: skip
def test_only_a_not_implemented_error_of_the_file_itself_is_not_written(
    by: Callable[[], Any], file: str | None, says: str | None
) -> None:
    outcome = judged_nothing(raised(by), file, None)
    assert says == (None if outcome is None else str(outcome))
    assert says is None or isinstance(outcome, NotWritten)


class _Layer:
    def __init__(self, size: int) -> None: ...


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("conv2d() got an unexpected keyword argument 'stride'", "conv2d has no parameter stride"),
        ("Layer.__init__() got an unexpected keyword argument 'bias'", "Layer has no parameter bias"),
        ("conv2d() got an unexpected keyword argument 'weight'", None),
        ("relu() got an unexpected keyword argument 'inplace'", None),
        ("number() got an unexpected keyword argument 'inplace'", None),
        ("written_in_c() got an unexpected keyword argument 'inplace'", None),
        ("conv2d() missing 1 required positional argument: 'weight'", None),
    ],
    ids=["a function", "a layer", "it has it", "it does not exist", "no function", "an unknown signature", "too few"],
)
def test_an_unknown_parameter_is_not_offered_if_the_signature_of_the_implementation_lacks_it(
    text: str, says: str | None
) -> None:
    mine = SimpleNamespace(conv2d=lambda input, weight: None, Layer=_Layer, number=3, written_in_c=min)
    outcome = judged_nothing(TypeError(text), None, mine)
    assert says == (None if outcome is None else str(outcome))
    assert says is None or isinstance(outcome, NotOffered)
    assert judged_nothing(TypeError(text), None, None) is None
    assert judged_nothing(ValueError(text), None, mine) is None


# Own work


@pytest.mark.parametrize(
    ("mine", "by"),
    [
        (RIGHT, "torch.conv2d"),
        ("import torch\nconv2d = torch.conv2d\n", "torch"),
        (OPERATOR, "conv"),
        (LOOPS, None),
    ],
    ids=["a function of PyTorch", "an alias", "an operator", "loops"],
)
@pytest.mark.slow
def test_the_report_names_the_functions_that_compute_a_component(tmp_path: Path, mine: str, by: str | None) -> None:
    result = trial(tmp_path, "--level", "tutorial", mine=mine)
    assert result.status == 0, result.out
    line = re.search(r"\n    conv2d .*", result.out)
    assert line, result.out
    assert ("computed by" in line[0]) == (by is not None), line[0]
    assert by is None or by in line[0]


@pytest.mark.slow
def test_own_work_option_fails_components_computed_by_pytorch(tmp_path: Path) -> None:
    result = trial(tmp_path, "--level", "tutorial", "--own-work", mine=RIGHT)
    assert result.status == 1, result.out
    assert "conv2d is computed by torch.conv2d" in result.out
    assert trial(tmp_path, "--level", "tutorial", "--own-work", mine=LOOPS).status == 0


# Side effects of a file on its process


def _with(line: str) -> str:
    """A convolution with a side effect."""
    return RIGHT.replace("    return", f"    {line}\n    return")


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        (_with("import os; os._exit(0)"), "the process that ran the test ended"),
        (_with("import ctypes; ctypes.string_at(0)"), "the process that ran the test ended"),
        (_with("import torch; torch.set_default_dtype(torch.float64)"), "changed torch.get_default_dtype() from"),
        (_with("import torch; torch.equal = lambda *_: True"), "the code under test changed torch.equal"),
        (_with("import pytest; pytest.fail = print"), "the code under test changed pytest.fail"),
        (_with("while True: pass"), "a call did not return within 10 s"),
        (_with("while True: print('x' * 100000)"), "a call printed more than 10 MB"),
    ],
    ids=["leaves", "crashes", "another default", "another torch", "another pytest", "hangs", "prints"],
)
@pytest.mark.slow
def test_damage_to_the_process_of_a_file_is_reported(tmp_path: Path, mine: str, says: str) -> None:
    result = trial(tmp_path, "--level", "tutorial", "-k", "stride_1", mine=mine, processes=())
    assert result.status == 1, result.out
    assert says in " ".join(result.out.split()), result.out
    assert re.search(r"\nmine: (1 component under test, )?1 failed", result.out), result.out


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ("import os\nos._exit(0)\n", "--impl mine.py: importing it ended the process"),
        ("while True: pass\n", "--impl mine.py: importing it did not end within 10 s"),
        ("import no_such\n", "--impl mine.py: importing it raised ModuleNotFoundError: No module named 'no_such'"),
    ],
    ids=["leaves", "hangs", "asks"],
)
@pytest.mark.slow
def test_a_file_that_cannot_be_imported_does_not_affect_other_implementations(
    tmp_path: Path, mine: str, says: str
) -> None:
    result = trial(tmp_path, mine=mine, processes=())
    assert result.status == 4, result.out
    assert says in result.err


# The text of failures


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The output for three tests that a wrong conv2d fails."""
    folder = tmp_path_factory.mktemp("failures")
    mine = RIGHT.replace("return ", "stride = 1 if stride == 2 else stride\n    return 1.5 * ")
    words = ("-k", "rounds_no_more or test_stride", "--dtype", "float32", "--all-failures")
    result = trial(folder, *words, mine=mine)
    assert result.status == 1, result.out
    return folder, result.out


def part(text: str, test: str) -> str:
    """The failure of one test."""
    found = re.search(rf"\n_+ {test}\[mine\] _+\n(.*?)\n(?:_+ test_|=+ )", text, re.DOTALL)
    assert found, text
    return found[1]


@pytest.mark.parametrize(
    "text",
    [
        "the result differs at index [0, 0, 0, 0]",
        "got        15.0",
        "expected   10.0",
        "tolerance  none: no step of this computation rounds",
        "9 of 9 numbers differ, most at index [0, 0, 1, 0]",
        "chapter 08, clause 08.conv2d.stride1, tutorial line 442, 445, 446, 447",
        "The 5×5 input and the 3×3 kernel give the documented 3×3 matrix",
        "5×5 输入与 3×3 卷积核在步长 1",
    ],
)
@pytest.mark.slow
def test_a_failure_gives_index_both_values_tolerance_and_derivation(failures: tuple[Path, str], text: str) -> None:
    assert text in part(failures[1], "test_stride_1_gives_the_documented_matrix")


@pytest.mark.slow
def test_a_wrong_shape_is_reported_before_wrong_numbers(failures: tuple[Path, str]) -> None:
    said = part(failures[1], "test_stride_is_the_step")
    assert "the result has shape [1, 1, 3, 3], expected [1, 1, 2, 2]" in said


@pytest.mark.slow
def test_a_failure_prints_the_derivation_of_the_tolerance(failures: tuple[Path, str]) -> None:
    said = part(failures[1], "test_conv2d_rounds_no_more_than_a_sum")
    assert re.search(r"tolerance  \S+: \d+ roundings to float32 \(eps 1.19e-07\) of numbers of up to \S+\n", said)


@pytest.mark.slow
def test_the_last_calls_can_be_pasted_into_python(failures: tuple[Path, str]) -> None:
    folder, text = failures
    pasted = part(text, "test_stride_1_gives_the_documented_matrix").partition("to paste into Python ")[2]
    code = pasted.partition("\n")[2]
    assert "conv2d(input, weight, stride=1)" in code
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert "[15.0000, 18.0000, 18.0000]" in again.stdout


FLIPPED = """
import torch

def conv2d(input, weight, bias=None, stride=1, padding=0):
    n, c, h, w = input.shape
    o, _, kh, kw = weight.shape
    padded = torch.zeros(n, c, h + 2 * padding, w + 2 * padding, dtype=input.dtype)
    padded[:, :, padding : padding + h, padding : padding + w] = input
    oh, ow = (h + 2 * padding - kh) // stride + 1, (w + 2 * padding - kw) // stride + 1
    output = torch.zeros(n, o, oh, ow, dtype=input.dtype)
    for y in range(oh):
        for x in range(ow):
            for i in range(kh):
                for j in range(kw):
                    pixels = padded[:, None, :, y * stride + i, x * stride + j]
                    output[:, :, y, x] += (pixels * weight[None, :, :, kh - 1 - i, kw - 1 - j]).sum(-1)
    return output
"""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a convolution with a flipped kernel, at level definition."""
    result = trial(tmp_path_factory.mktemp("lesson"), "--level", "definition", mine=FLIPPED)
    assert result.status == 1, result.out
    return result.out.partition(" trial =")[2].partition("\n")[2]


@pytest.mark.slow
def test_only_the_first_failure_is_shown_in_full(lesson: str) -> None:
    first, _, rest = lesson.partition("\n\n")
    lines = first.splitlines()
    assert lines[0] == "conv2d: stride 1 gives the documented matrix"
    assert len(lines) <= 30
    assert all(len(line) <= 80 for line in lines if "sys.path" not in line)  # the folder of the file may be long
    for text in ("    got        9\n", "    expected   10\n", "(08.conv2d.stride1)"):
        assert text in first
    assert re.search(r"\n  stride as a pair: \d+ tests\n", rest), rest
    assert "test_stride_is_the_step" not in rest


@pytest.mark.slow
def test_a_failure_names_the_mistake_that_gives_the_same_values(lesson: str) -> None:
    assert "\n  diagnosis: kernel is flipped" in lesson


@pytest.mark.slow
def test_the_pasted_call_of_the_first_failure_shows_the_difference_from_any_folder(lesson: str, tmp_path: Path) -> None:
    code = lesson.partition("\n\n")[0].partition("paste into Python:\n")[2]
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert re.search(r"got tensor\(\[\[\[\[ 9, 12,  9\]", again.stdout)
    assert re.search(r"expected tensor\(\[\[\[\[10, 12, 12\]", again.stdout)


@pytest.mark.slow
def test_the_progress_counts_each_level_and_names_the_next_test(lesson: str) -> None:
    following = r"next: stride 1 gives the documented matrix \(08\.conv2d\.stride1\)"
    assert re.search(rf"\n    conv2d +tutorial \d+/13   definition \d+/\d+   {following}", lesson), lesson


# Known failures


def known(folder: Path, text: str, *arguments: str, mine: str = STRIDE_IGNORED) -> Result:
    (folder / "known.toml").write_text(text, encoding="utf-8")
    return trial(folder, "--known-failures", "known.toml", *arguments, "-k", "test_stride_is_the_step", mine=mine)


NAME = "spec/test_08_convolution.py::test_stride_is_the_step[mine]"


@pytest.mark.slow
def test_a_known_failure_is_expected_with_the_reason(tmp_path: Path) -> None:
    result = known(tmp_path, f'"{NAME}" = "no strides yet"\n')
    assert result.status == 0, result.out
    assert "1 xfailed" in result.out
    assert "no strides yet" in result.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "mine", "says", "status"),
    [
        pytest.param(f'"{NAME}" = "x"', RIGHT, "XPASS(strict)", 1, id="one that passes"),
        pytest.param('"spec/test_08_convolution.py::test_x[mine]" = "x"', RIGHT, "matches no test", 4, id="no test"),
        pytest.param('"spec/test_99.py::test_x[mine]" = "x"', RIGHT, "matches no test", 4, id="no file"),
        pytest.param(f'"{NAME}" = ""', RIGHT, "needs a reason in words, got ''", 4, id="no reason"),
        pytest.param(f'"{NAME}" = "x"', "", "is absent, it cannot fail", 4, id="one that is absent"),
        pytest.param("what?", RIGHT, "--known-failures known.toml: ", 4, id="no TOML"),
    ],
)
def test_a_known_failure_that_passes_fails_the_run(
    tmp_path: Path, text: str, mine: str, says: str, status: int
) -> None:
    result = known(tmp_path, text, mine=mine)
    assert result.status == status, result.out
    assert says in result.out + result.err


@pytest.mark.slow
def test_pytorchs_known_failures_are_expected_and_shown(tmp_path: Path) -> None:
    """Those of `spec/known_failures/torch.toml`, without an option."""
    options = ("-k", "large_negative_numbers_has_the_gradient", "--impl", "torch")
    result = trial(tmp_path, *options, chapter="12_attention")
    assert result.status == 0, result.out
    assert "2 xfailed" in result.out
    assert re.search(r"\n    known failure: spec/test_12_attention.py::\S+\[.*\]: .*log-sum-exp", result.out), (
        result.out
    )


@pytest.mark.slow
def test_pytorchs_known_failures_apply_to_pytorch_only(tmp_path: Path) -> None:
    options = ("-k", "large_negative_numbers_has_the_gradient", "--impl", "torch.nn.functional,reference")
    result = trial(tmp_path, *options, chapter="12_attention")
    assert result.status == 1, result.out
    assert "2 failed, 2 passed" in result.out


# Refused options


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.py", "there is no such file"),
        ("no.such.module", "there is no such module; known are reference, torch, torch-compile, a dotted module and "),
        ("broken.py", "importing it raised SyntaxError: invalid syntax"),
        ("leaving.py", "importing it raised SystemExit: 3"),
        ("asking.py", "importing it raised ModuleNotFoundError: No module named 'no_such'"),
        ("spec.faults:Nothing", "module spec.faults has no Nothing"),
    ],
)
def test_an_implementation_that_cannot_be_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    for file, text in (("broken", "def conv2d(:"), ("leaving", "raise SystemExit(3)"), ("asking", "import no_such")):
        (tmp_path / f"{file}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImplementationError, match=re.escape(f"--impl {name}: {says}")):
        load(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("--impl", "nowhere.py"), "--impl nowhere.py: there is no such file", id="no file"),
        pytest.param(("--impl", "torch,torch"), "needs different names, got 'torch,torch'", id="twice", marks=SLOW),
        pytest.param(("--dtype", "float8"), "--dtype must be among float64, float32, float16,", id="dtype", marks=SLOW),
        pytest.param(("--device", "abacus"), "--device abacus: ", id="device", marks=SLOW),
        pytest.param(("--known-failures", "no.toml"), "--known-failures no.toml: ", id="known", marks=SLOW),
    ],
)
@pytest.mark.slow
def test_invalid_options_are_one_line_errors(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    result = trial(tmp_path, *arguments)
    assert result.status == 4, result.out
    assert says in result.err
    assert "Traceback" not in result.err
