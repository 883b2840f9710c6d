"""The images of README in both languages: `python -m spec.report.readme_images` writes them into docs/images.

    results.en.png, results.zh.png    the curves of a training on the embedded Shapes
    failure.en.png, failure.zh.png    a failing test as a learner sees it
    report.en.png, report.zh.png      the page of the report, in Chromium

Trains, runs the tests of the components of chapters 08 to 15, and takes some minutes.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from reference import messages
from reference.checkpoint import load_checkpoint
from reference.data.shapes import Shapes
from reference.fonts import system_fonts
from reference.run import prepare, stored_settings
from reference.run.plots import save_results
from reference.text import wrapped
from reference.training import Curve, Progress

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
CHAPTERS = ("08_convolution", "10_pooling", "11_activation", "12_linear", "14_loss", "15_optim")
COLUMNS = 100

MISTAKE = """import torch.nn.functional as F


def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return F.conv2d(input, weight.flip(2, 3), bias, stride, padding, dilation, groups)
"""
"""A common mistake: convolution as in mathematics turns the kernel around, and PyTorch's does not."""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        draw_training(Path(place))
        draw_failure(Path(place))
        draw_report(Path(place))
    for path in sorted(IMAGES.glob("*.png")):
        reduce(path)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


LOCALES = {"en": "C", "zh": "zh_CN.UTF-8"}


def command(*words: object, cwd: Path, language: str = "en") -> str:
    """Run a Python command and return what it prints; its exit status does not matter, since a test fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": str(COLUMNS), "LC_MESSAGES": LOCALES[language]}
    environment.pop("LC_ALL", None)
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.stdout


def draw_training(place: Path) -> None:
    """The curves of the tutorial's network on the Shapes, by the recipe fast."""
    words = ("--dataset", "shapes", "--recipe", "fast", "--epochs", 2, "--no-plots", "--precision", "float32")
    print(command(ROOT / "scripts/train_full.py", *words, "--output", place / "run", cwd=place), end="")
    settings, shapes = stored_settings(place / "run"), Shapes()
    rate = prepare(settings, shapes, shapes, torch.device("cpu")).rate
    stored = load_checkpoint(place / "run/last.pt")["training"]["progress"]
    progress = Progress(history=stored["history"], curve=Curve(**stored["curve"]))
    for language in LOCALES:
        messages.choose_language(language)
        save_results(IMAGES / f"results.{language}.png", progress, rate)
    messages.choose_language("en")


def draw_failure(place: Path) -> None:
    """The report about a wrong `conv2d`, in the letters of a terminal, in each language."""
    (place / "mine.py").write_text(MISTAKE)
    words = ("--impl", place / "mine.py", "--level", "tutorial", "-k", "stride or padding_1_gives", "-n", 0, "-q")
    words += ("-p", "no:randomly", "-p", "no:cacheprovider")
    for language in LOCALES:
        text = command("-m", "pytest", "spec/test_08_convolution.py", *words, cwd=ROOT, language=language)
        text = text[text.find("===") :].replace(f"{place}/", "").replace(str(place), ".")
        draw_text(text, IMAGES / f"failure.{language}.png")


def draw_text(text: str, path: Path) -> None:
    """The first lines of a text in the letters of a terminal."""
    lines: list[str] = []
    for line in text.splitlines():
        first, *more = wrapped(line.rstrip(), COLUMNS)
        lines += [first, *(f"        {part}" for part in more)]
    lines = lines[:46]
    font = terminal_font(15)
    height, width = 20, round(font.getlength("0") * COLUMNS)
    sheet = Image.new("RGB", (width + 32, height * len(lines) + 24), "#1e1e1e")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        colour = "#ff9d76" if line.startswith(("E ", "FAILED")) else "#e4e4e4"
        draw.text((16, 12 + height * number), line, colour, font)
    sheet.save(path)


def terminal_font(size: int) -> ImageFont.FreeTypeFont:
    """A monospaced system font with Chinese characters."""
    for path in system_fonts():
        if path.suffix == ".ttc":
            for index in range(8):
                try:
                    font = ImageFont.truetype(str(path), size, index=index)
                except OSError:
                    break
                if "Mono" in " ".join(filter(None, font.getname())):
                    return font
    raise SystemExit("no font of one width with Chinese characters, such as WenQuanYi Zen Hei Mono")


def draw_report(place: Path) -> None:
    """The summary and the scores of the report's page, in each language."""
    from playwright.sync_api import sync_playwright

    files = [f"spec/test_{chapter}.py" for chapter in CHAPTERS]
    implementations = "reference,reference.definitions,torch"
    words = ("--impl", implementations, "--report", place / "report", "-p", "no:cacheprovider", "-q")
    print(command("-m", "pytest", *files, *words, cwd=ROOT).splitlines()[-1])
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        options = ["--no-sandbox"] if sys.platform == "linux" else []
        started = playwright.chromium.launch(executable_path=browser, args=options)
        for language in LOCALES:
            tab = started.new_page(viewport={"width": 1000, "height": 900}, color_scheme="light")
            tab.goto(f"{(place / 'report/index.html').as_uri()}#lang={language}")
            tab.locator("html[data-ready]").wait_for(state="attached")
            tab.locator("#summary, h2").first.evaluate("element => element.scrollIntoView()")
            tab.screenshot(path=IMAGES / f"report.{language}.png")
        started.close()


def reduce(path: Path) -> None:
    """Rewrite an image with at most 64 colours, which these drawings need no more of."""
    with Image.open(path) as image:
        smaller = image.convert("RGB").quantize(64, dither=Image.Dither.NONE)
    smaller.save(path, optimize=True)


if __name__ == "__main__":
    main()
