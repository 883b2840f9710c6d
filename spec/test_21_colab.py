"""Chapter 21: the same training in a notebook on a cloud machine."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from reference.doctor import examine
from spec.support.clauses import clause

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/train_on_colab.ipynb"


def cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@clause("21.listing.imports", "21.listing.session")
def test_cells_of_a_session_share_names() -> None:
    first, second = "import torch", "print(torch.__version__)"  # chapter 21, lines 2155 and 2159
    with pytest.raises(NameError, match="torch"):
        exec(second, {})
    with pytest.raises(NameError, match="torch"):
        exec("print(torch.cuda.is_available())", {})  # line 2164
    session: dict[str, Any] = {}
    exec(first, session)
    exec(second, session)


@clause("21.version.printed")
def test_the_version_names_release_and_build() -> None:
    printed = "2.2.1+cu121"  # chapter 21, line 2160
    shape = r"(\d+)\.(\d+)\.(\d+)\w*(\+\w+)?"
    assert re.fullmatch(shape, printed)
    assert re.fullmatch(shape, torch.__version__)
    assert tuple(map(int, re.match(r"(\d+)\.(\d+)", torch.__version__).groups())) > (2, 2)  # pyright: ignore[reportOptionalMemberAccess]


@clause("21.gpu.available")
def test_the_doctor_finds_a_gpu_exactly_where_pytorch_can_use_one(tmp_path: Path) -> None:
    # chapter 21, lines 2165 and 2166: True means that the GPU can be used
    findings = {finding.what for finding in examine(tmp_path)}
    assert ("cuda:0" in findings) == torch.cuda.is_available()
    if torch.cuda.is_available():
        assert torch.ones(2, device="cuda").sum().item() == 2


@clause("21.steps.colab")
def test_a_pass_of_the_listings_loader_takes_782_steps() -> None:
    # chapter 21, line 2277: 781.25 steps
    assert len(DataLoader(range(50_000), batch_size=64)) == 782  # pyright: ignore[reportArgumentType]


@clause("21.listing.timer", "21.gpu.chosen", "21.speed.providers")
def test_the_notebook_requests_a_gpu_measures_speed_and_runs_without_one() -> None:
    content = json.loads(NOTEBOOK.read_text())
    assert content["metadata"]["accelerator"] == "GPU"
    assert any("GPU" in text for text in cells("markdown"))
    code = "\n".join(cells("code"))
    assert "scripts/train_full.py" in code  # which measures images per second of every epoch
    assert "cuda:0" not in code
    assert "torch.cuda.is_available()" in code


@clause("21.notebook.clean")
def test_the_notebook_is_kept_without_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


@clause("21.notebook.clean")
def test_notebook_text_is_in_english_and_chinese() -> None:
    for text in cells("markdown"):
        title, *paragraphs = text.split("\n\n")
        assert re.search("[\u4e00-\u9fff]", title), title
        assert re.search("[A-Za-z]{3}", title), title
        chinese = [bool(re.search("[\u4e00-\u9fff]", paragraph)) for paragraph in paragraphs]
        assert chinese == [False, True] * (len(paragraphs) // 2), text


@clause("21.notebook.runs", "21.speed.providers")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the notebook extra is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the notebook extra is not installed")
    monkeypatch.setenv("OCEAN_RUN", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    flags = "--dataset shapes --limit-train 640 --limit-test 100 --epochs 2 --num-threads 1 --log-every 10"
    monkeypatch.setenv("OCEAN_FLAGS", flags)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    assert torch.__version__ in text
    assert "ok torch" in text
    assert re.search(r"epochs 轮数: 2, test accuracy 测试正确率: \d+\.\d\d%", text)
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 5  # curves, confusion matrix, mistakes, examples of the data, and the answers
    assert (tmp_path / "colab/summary.json").exists()
    # lines 2319 and 2320: the run records its device and its speed
    assert torch.device(json.loads((tmp_path / "colab/config.json").read_text())["device"]).type in (
        "cpu",
        "cuda",
        "mps",
    )
    metrics = [json.loads(line) for line in (tmp_path / "colab/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2
    assert all(line["images_per_second"] > 1 for line in metrics)
