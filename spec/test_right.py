"""Right implementations pass, even if they differ from PyTorch in undocumented behaviour."""

import re
from pathlib import Path

import pytest

from spec.support.command import Result, run

ROOT = Path(__file__).parents[1]
LENGTHS = {
    "test_loader_length_is_the_number_of_batches",
    "test_loader_length_follows_the_length_of_the_sampler",
}


def judge(folder: Path, name: str, chapters: str, *words: str) -> Result:
    """Test `spec.right.NAME` with some chapters, with few examples of each property."""
    files = [str(path) for path in sorted(ROOT.glob("spec/test_*.py")) if re.match(rf"test_({chapters})", path.name)]
    where = (*files, "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), "--impl", f"spec.right.{name}")
    options = ("--hypothesis-profile", "dev", "-p", "no:cacheprovider", "-n", "0", "-q", "--tb", "short")
    options += ("-W", "ignore::pytest.PytestAssertRewriteWarning")  # plugins that the fork server has imported
    return run("pytest", *where, *options, *words, folder=folder)


def failures(result: Result) -> set[str]:
    """The names of the tests that failed, without their parameters."""
    return set(re.findall(r"^(?:FAILED|ERROR|SUBFAILED\S*) .*?::(?:\w+::)?(\w+)", result.out, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chapters", "words"),
    [
        pytest.param("wording", "0[34689]_|1[0-5]_", ("--aspect", "errors"), id="errors in other words"),
        pytest.param(
            "undocumented", "04_|06_|11_|12_attention|15_optim",
            ("--without", "observations", "-k", "resize or crop or flip or loader or softmax or closure or query"),
            id="what the documentation leaves open",
        ),
        pytest.param(
            "documented_attention", "12_attention", ("--without", "observations,low-precision,errors"),
            id="the code in the documentation of attention",
        ),
        pytest.param("documented_attention", "12_attention", ("-k", "two"), id="an assertion"),
        pytest.param("warning", "08_|15_optim.py", ("--level", "tutorial"), id="warnings"),
    ],
)  # fmt: skip
def test_a_right_implementation_passes(tmp_path: Path, name: str, chapters: str, words: tuple[str, ...]) -> None:
    result = judge(tmp_path, name, chapters, *words)
    assert failures(result) == set(), result.out
    assert result.status == 0, result.out
    assert re.search(rf"\nspec\.right\.{name}: \d+ components? under test, \d+ passed", result.out), result.out


@pytest.mark.slow
def test_a_loader_without_len_fails_only_the_tests_of_the_length(tmp_path: Path) -> None:
    result = judge(tmp_path, "without_length", "06_")
    assert failures(result) == LENGTHS, result.out


@pytest.mark.slow
def test_observations_fail_for_right_implementations_that_differ_from_pytorch(tmp_path: Path) -> None:
    """The tests that `--without observations` leaves out fail for these implementations."""
    words = ("-k", "drawn_first or global_seed_0 or gets_zeros or returned_itself")
    result = judge(tmp_path, "undocumented", "04_|06_dataloader|11_|12_attention", *words)
    assert {
        "test_random_crop_row_is_drawn_first_and_only_if_needed",
        "test_shuffle_of_8_items_with_global_seed_0_is_the_documented_order",
        "test_an_image_of_the_right_size_is_returned_itself",
        "test_a_fully_masked_query_gets_zeros",
    } <= failures(result), result.out
