"""The report: complete, self-contained, and a browser has nothing to complain about."""

import re
import shutil
import subprocess

import numpy as np
import pytest

import medistill
from conftest import TINY
from medistill.reporting.words import verdict

SOURCE = "phantom:classes=3,images=36,size=16"


@pytest.fixture(scope="module")
def page(package, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    medistill.report(package, on=SOURCE, out=path, config=TINY)
    return path


def test_self_contained_with_text_for_every_picture(page):
    html = page.read_text()
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) >= 3 * 2 + 5
    for image in images:
        assert 'src="data:image/' in image
        assert re.search(r'alt="[^"]{20,}"', image)
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "<script" not in html


def test_parts_are_there_and_the_verdict_is_first(page):
    html = page.read_text()
    places = [html.index(part) for part in ("Verdict", "How it compares", "The images", "Learning curves", "Class by class", "What it cost", "Where it comes from", "Please cite")]  # fmt: skip
    assert places == sorted(places)


def test_same_results_same_page_but_for_seconds(page, package, tmp_path):
    medistill.report(package, on=SOURCE, out=tmp_path / "again.html", config=TINY)

    def timeless(text):
        return re.sub(r"[\d.]+ s, at most \d+ MB", "", text)

    assert timeless(page.read_text()) == timeless((tmp_path / "again.html").read_text())


def _chromium():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(_chromium() is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_loads_every_image_and_logs_no_error(page, tmp_path):
    # The page itself has no script; this copy asks each picture whether it was decoded.
    probe = (
        "<script>window.addEventListener('load', () => { const all = [...document.images];"
        "document.title = 'decoded ' + all.filter(i => i.complete && i.naturalWidth > 1).length + ' of ' + all.length;"
        "});</script></body>"
    )
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    done = subprocess.run(
        [
            _chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    title = re.search(r"<title>decoded (\d+) of (\d+)</title>", done.stdout)
    assert title and title[1] == title[2] and int(title[1]) >= 11, done.stdout[:500]
    assert "CONSOLE" not in done.stderr


def _result(distilled, random, full, low):
    arms = {
        name: {"balanced_accuracy": {"mean": value}}
        for name, value in (("distilled", distilled), ("random", random), ("full", full))
    }
    gain = {"mean": distilled - random, "ci95": [low, distilled - random + 0.1]}
    above = (distilled - 0.5) / (full - 0.5) if full > 0.5 else None
    return {
        "arms": arms, "recovery": {"balanced_accuracy": distilled / full},
        "recovery_above_chance": {"balanced_accuracy": above}, "gain_over_random": {"balanced_accuracy": gain},
        "data": {"name": "x", "same_as_distilled": True}, "test_images": 200, "images": {"distilled": 20}, "compression": {"images": 0.01, "stored_images": 0.01}, "class_names": ["a", "b"],
        "details": {"distilled": {"recall": [distilled, distilled]}, "full": {"recall": [full, full]}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        ((0.88, 0.7, 0.9, 0.1), "It can stand in", "is better than"),
        ((0.78, 0.75, 0.9, -0.05), "partial substitute", "not shown to be better"),
        ((0.55, 0.7, 0.9, -0.25), "cannot stand in", "worse than"),
        ((0.5, 0.5, 0.5, -0.1), "not surely better than guessing", "not shown"),
    ],
)
def test_verdict_follows_the_figures(values, first, second):
    said = verdict(_result(*values), coreset=False)
    if values == (0.55, 0.7, 0.9, -0.25):
        result = _result(*values)
        result["gain_over_random"]["balanced_accuracy"]["ci95"] = [-0.25, -0.05]
        said = verdict(result, coreset=False)
    assert first in said[0] and second in said[1]
    assert "Leakage was not measured" in said[-1]
    assert "real patient images" in verdict(_result(*values), coreset=True)[-1]


def test_few_test_images_carry_no_verdict():
    result = {**_result(0.9, 0.7, 0.9, 0.1), "test_images": 4}
    assert verdict(result, False)[0].startswith("With 4 test images nothing can be said of its worth: networks")


def test_weak_classes_are_named():
    result = _result(0.6, 0.5, 0.9, 0.01)
    assert "a (60%)" in " ".join(verdict(result, coreset=False))
    assert np.isclose(result["arms"]["full"]["balanced_accuracy"]["mean"], 0.9)
