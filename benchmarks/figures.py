"""Render the recorded GPU runs as Markdown: `python -m benchmarks.figures`.

Reads `docs/figures/*.json`, written by `python -m benchmarks.gpu`, and replaces the text between two markers in
`docs/gpu.md` and `docs/gpu.zh-CN.md`. Every number comes from a file, with device, versions and date; without a file
the text states that nothing has been measured. `--check` changes nothing and fails if the documents differ.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs/figures"
DOCUMENTS = {"en": ROOT / "docs/gpu.md", "zh": ROOT / "docs/gpu.zh-CN.md"}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
CLAIM = 148.0
"""Seconds of the tutorial's ten epochs on its GPU (chapter 19, line 1714)."""

WORDS = {
    "none": ("Not yet measured: no run on a GPU has been recorded.", "尚未测量：还没有在 GPU 上的运行记录。"),
    "run": ("Run of {date} on {gpu}", "{date} 的运行，{gpu}"),
    "with": ("{torch}, CUDA {cuda}, cuDNN {cudnn}, driver {driver}, Python {python}, {cores} cores; {source}",) * 2,
    "part": ("part", "部分"),
    "status": ("status", "状态"),
    "seconds": ("seconds", "秒"),
    "figure": ("figure", "项目"),
    "value": ("value", "结果"),
    "claims": ("The tutorial's claims", "教程的论断"),
    "148": ("ten epochs of its program, chapter 19, take 148 s", "第 19 章的程序训练十轮用 148 秒"),
    "ten": ("a GPU trains ten times as fast as the CPU", "GPU 训练比 CPU 快十倍"),
    "ours": ("ours, from the command to its end", "本项目，从命令开始到结束"),
    "training": ("10 epochs, {precision}, --compile {compile}", "10 轮，{precision}，--compile {compile}"),
    "fast": ("--recipe fast, {images:,} images, {epochs} epochs", "--recipe fast，{images:,} 张图像，{epochs} 轮"),
    "share": ("a step of {batch}, {dtype}, --compile {compile}", "每步 {batch} 张，{dtype}，--compile {compile}"),
    "accuracy": ("test accuracy {accuracy}", "测试准确率 {accuracy}"),
    "images": ("{count:,} images/s", "每秒 {count:,} 张图像"),
    "memory": ("peak {mib:,.0f} MiB", "峰值 {mib:,.0f} MiB"),
    "busy": ("{ms:.3f} ms, the GPU computes in {share:.0%} of it", "{ms:.3f} 毫秒，其中 GPU 计算占 {share:.0%}"),
    "times": (
        "{ratio:.2f} times: {cpu:.2f} ms a step on the CPU, {gpu:.2f} ms on the GPU",
        "{ratio:.2f} 倍：CPU 每步 {cpu:.2f} 毫秒，GPU 每步 {gpu:.2f} 毫秒",
    ),
    "took": ("{seconds:.1f} s", "{seconds:.1f} 秒"),
}
"""Every text, in English and Chinese."""


def text(key: str, language: str, **values: Any) -> str:
    """A text in a language."""
    return WORDS[key][language == "zh"].format(**values)


def spread(values: list[float], form: str) -> str:
    """Mean ± standard deviation, or the value itself if there is only one."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def counts(figures: list[dict[str, Any]]) -> str:
    """The outcomes of a run of pytest, or the number of figures."""
    total: dict[str, int] = {}
    for figure in figures:
        if "outcome" in figure:
            total[figure["outcome"]] = total.get(figure["outcome"], 0) + figure.get("count", 1)
    return "; " + ", ".join(f"{count} {name}" for name, count in sorted(total.items())) if total else ""


def parts(run: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The figures of a part; none if it was not run."""
    return run["parts"].get(name, {}).get("figures", [])


def claims(run: dict[str, Any], language: str) -> Iterator[tuple[str, ...]]:
    """The tutorial's two claims about speed, and the measurements."""
    programs = [figure for figure in parts(run, "tutorial") if "epoch" not in figure]
    for figure in programs:
        if figure.get("epochs") == 10:
            yield text("148", language), text("took", language, seconds=figure["seconds"])
    steps = {f["device"]: f["milliseconds_a_step"] for f in programs if f.get("milliseconds_a_step")}
    gpu = next((value for device, value in steps.items() if device != "cpu"), None)
    if gpu and "cpu" in steps:
        ratio = steps["cpu"] / gpu
        yield text("ten", language), text("times", language, ratio=ratio, cpu=steps["cpu"], gpu=gpu)
    for figure in parts(run, "command"):
        if "test_accuracy" in figure:
            result = [text("took", language, seconds=figure["seconds"])]
            result.append(text("accuracy", language, accuracy=f"{figure['test_accuracy']:.4f}"))
            yield f"{text('ours', language)}, --precision {figure['precision']}", ", ".join(result)


def measured(run: dict[str, Any], language: str) -> Iterator[tuple[str, ...]]:
    """Trainings, the fast recipe and the profile."""
    for how in ("off", "graphs", "full"):
        figures = parts(run, f"trainings-{how}")
        peaks = {figure["precision"]: figure["peak_mib"] for figure in figures if "peak_mib" in figure}
        for figure in figures:
            if "test_accuracy" not in figure:
                continue
            result = [text("took", language, seconds=figure["seconds"])]
            result.append(text("images", language, count=round(statistics.median(figure["images_per_second"]))))
            result.append(text("accuracy", language, accuracy=f"{figure['test_accuracy']:.4f}"))
            if (peak := peaks.get(figure["precision"])) is not None:
                result.append(text("memory", language, mib=peak))
            yield text("training", language, **figure), ", ".join(result)
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for figure in parts(run, "fast"):
        groups.setdefault((figure["images"], figure["epochs"]), []).append(figure)
    for (images, epochs), group in groups.items():
        seconds = statistics.median(figure["seconds"] for figure in group)
        accuracy = spread([figure["test_accuracy"] for figure in group], ".4f")
        result = [text("took", language, seconds=seconds), text("accuracy", language, accuracy=accuracy)]
        yield text("fast", language, images=images, epochs=epochs), ", ".join(result)
    for figure in parts(run, "profile"):
        if figure["gpu_share"] is not None:
            result = [text("busy", language, ms=figure["milliseconds"], share=figure["gpu_share"])]
            yield text("share", language, **figure), ", ".join(result)


def render(runs: dict[str, dict[str, Any]], language: str) -> str:
    """The recorded runs in Markdown, the newest first; rehearsals are left out."""
    runs = {name: run for name, run in runs.items() if not run["rehearsal"]}
    if not runs:
        return text("none", language)
    lines: list[str] = []
    for name, run in sorted(runs.items(), key=lambda item: item[1]["date"], reverse=True):
        about = run["environment"] or {}
        lines += [f"### {text('run', language, date=run['date'][:10], gpu=about.get('GPU', '?'))}", ""]
        source = f"[`{name}`](figures/{name})"
        keys = {"torch": "torch", "cuda": "cuda", "cudnn": "cuDNN", "driver": "driver", "python": "python"}
        values = {key: about.get(value) for key, value in (keys | {"cores": "cores"}).items()}
        lines += [text("with", language, source=source, **values).replace("None", "?"), ""]
        head = text("figure", language), text("value", language)
        lines += [*table((text("claims", language), head[1]), [*claims(run, language)]), ""]
        lines += [*table(head, [*measured(run, language)]), ""]
        done = [
            (part, entry["status"] + counts(entry["figures"]), str(entry.get("seconds", "")))
            for part, entry in run["parts"].items()
        ]
        lines += [*table(tuple(text(word, language) for word in ("part", "status", "seconds")), done), ""]
    return "\n".join(lines).rstrip()


def filled(document: str, content: str) -> str:
    """The document with `content` between the markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def main() -> int:
    """Render or check the documents, as requested on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document differs")
    chosen = parser.parse_args()
    runs = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("*.json"))}
    different = []
    for language, path in DOCUMENTS.items():
        before = path.read_text(encoding="utf-8")
        after = filled(before, render(runs, language))
        if after != before:
            different.append(path)
            if not chosen.check:
                path.write_text(after, encoding="utf-8")
    for path in different:
        print(f"{path.relative_to(ROOT)} {'differs from docs/figures' if chosen.check else 'written'}")
    return int(chosen.check and bool(different))


if __name__ == "__main__":
    sys.exit(main())
