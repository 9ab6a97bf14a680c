"""The report: complete, self-contained, and a browser has nothing to complain about."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import medistill
from conftest import ROOT, SMALL_DM, TINY
from medistill.package.finding import Finding
from medistill.package.results import Details, Estimate, EvaluatedData, EvaluationResult
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
    assert len(images) >= 3 * 2 + 5 + 2, "of each class, charts, and the pairs most alike"
    for image in images:
        assert 'src="data:image/' in image
        assert re.search(r'alt="[^"]{20,}"', image)
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert "<script" not in html


def test_parts_are_there_and_the_verdict_is_first(page):
    html = page.read_text()
    parts = (
        "Verdict", "How it compares", "The images", "What it gives away", "Learning curves", "Class by class",
        "What it cost", "Where it comes from", "Please cite",
    )  # fmt: skip
    places = [html.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("kind", "strata", "heading"),
    [
        ("task=findings", ("solid nodule", "no finding"), "Finding by finding"),
        ("task=grades", ("grade 0", "grade 2"), "Grade by grade"),
        ("depth=16", ("no lesion", "ring lesion"), "Class by class"),
    ],
)
def test_every_kind_of_data_has_its_page(kind, strata, heading, tmp_path):
    source = f"{SOURCE},{kind}"
    medistill.distill(source, out=tmp_path / "p", ipc=2, settings=SMALL_DM)
    medistill.report(tmp_path / "p", on=source, out=tmp_path / "r.html", config=TINY)
    html = (tmp_path / "r.html").read_text()
    assert heading in html
    for stratum in strata:
        assert re.search(rf'alt="\d+ distilled images: {stratum}"', html)
    assert ("Confusion matrix" in html) == ("findings" not in kind)


def test_names_with_mathematics_and_markup_are_shown_as_they_are(tmp_path):
    names = {"data": {"class_names": ["$f_{$", "<b>bold</b>", "c"]}}
    medistill.distill(SOURCE, out=tmp_path / "p", ipc=1, settings={**SMALL_DM, **names})
    medistill.report(tmp_path / "p", on=SOURCE, out=tmp_path / "r.html", config=TINY)
    html = (tmp_path / "r.html").read_text()
    assert "$f_{$" in html and "&lt;b&gt;bold&lt;/b&gt;" in html and "<b>bold" not in html


def test_a_package_that_was_not_audited_shows_its_closest_pairs_too(tmp_path):
    package = ROOT / "tests" / "data" / "package-v1.zip"
    medistill.report(package, on=SOURCE, out=tmp_path / "r.html", config=TINY)
    html = (tmp_path / "r.html").read_text()
    assert html.count("pairs most alike") == 6
    for measure in ("correlation of pixels", "structural similarity", "correlation of features"):
        assert html.count(f"both as stored; {measure}") == 2, "with training and with held-out images"


def test_networks_that_were_teachers_have_no_learning_curve_and_the_page_is_there(tmp_path):
    """That of the balanced arm was a teacher, of which only the end is known."""
    labels = {"teachers": 1, "balance": True, "recipe": TINY.recipe.model_dump(mode="json")}
    settings = {**SMALL_DM, "labels": labels}
    medistill.distill(SOURCE, out=tmp_path / "p", method="dm", ipc=2, seed=8, settings=settings)
    config = TINY.model_copy(update={"repeats": 2, "random_draws": 2})
    result = medistill.evaluate(tmp_path / "p", on=SOURCE, config=config)
    assert [len(curve) for curve in result["curves"]["full_balanced"]] == [1]
    page = medistill.report(tmp_path / "p", on=SOURCE, out=tmp_path / "r.html", config=config)["report"]
    assert "Learning curves" in Path(page).read_text()


def test_further_networks_are_on_the_page(package, tmp_path):
    config = TINY.model_copy(update={"architectures": ("convnet", "mlp")})
    medistill.report(package, on=SOURCE, out=tmp_path / "r.html", config=config)
    html = (tmp_path / "r.html").read_text()
    assert "On other networks" in html and len(re.findall(r'<th scope="row">mlp</th>', html)) == 4


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
        "const decoded = all.filter(i => i.complete && i.naturalWidth > 1).length;"
        "document.title = 'decoded ' + decoded + ' of ' + all.length;"
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


def _result(distilled, random, full, low, high=None, **changes):
    metric, scores = "balanced_accuracy", {"distilled": distilled, "random": random, "full": full}
    gain = Estimate(mean=distilled - random, ci95=[low, distilled - random + 0.1 if high is None else high])
    recalls = {
        arm: Details(recall=[score] * 2, confusion=None, calibration_error=0.1) for arm, score in scores.items()
    }
    values = {
        "task": "binary", "class_names": ["a", "b"], "primary": metric, "architecture": "convnet",
        "arms": {arm: {metric: Estimate(mean=score)} for arm, score in scores.items()},
        "recovery": {metric: distilled / full}, "recovery_ci95": {metric: None},
        "recovery_above_baseline": {metric: (distilled - 0.5) / (full - 0.5) if full > 0.5 else None},
        "recovery_above_baseline_ci95": {metric: None},
        "gain_over_random": {metric: gain}, "majority_baseline": {metric: 0.5}, "details": recalls,
        "compression": {"images": 0.01, "stored_images": 0.01}, "images": {"distilled": 20}, "test_images": 200,
        "data": EvaluatedData(name="x", fingerprint="f", same_as_distilled=True),
        "recipe": {}, "repeats": 3, "random_draws": 6, "seed": 0, "notes": [],
    }  # fmt: skip
    return EvaluationResult(**{**values, **changes})


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        ((0.88, 0.7, 0.9, 0.1), "It can stand in", "is better than"),
        ((0.78, 0.75, 0.9, -0.05), "partial substitute", "not shown to be better"),
        ((0.55, 0.7, 0.9, -0.25, -0.05), "cannot stand in", "worse than"),
        ((0.5, 0.5, 0.5, -0.1), "not surely better than guessing", "not shown"),
    ],
)
def test_verdict_follows_the_figures(values, first, second):
    said = verdict(_result(*values), real=False, findings=[])
    assert first in said[0] and second in said[1]
    assert "What it gives away was not measured" in said[-1]
    assert "real patient images" in verdict(_result(*values), real=True, findings=[])[-1]


def test_verdict_tells_what_was_found_and_guarantees_nothing():
    found = Finding(name="x", title="Copies", value=0.5, verdict="fail", explanation="Two of four are copies.")
    said = verdict(_result(0.88, 0.7, 0.9, 0.1), real=False, findings=[found])
    assert said[-2:] == ["Copies: Two of four are copies.", "Without a privacy budget nothing is guaranteed."]
    assert "Copies: Two of four are copies." in verdict(_result(0.88, 0.7, 0.9, 0.1), real=True, findings=[found])


def test_few_test_images_carry_no_verdict():
    result = _result(0.9, 0.7, 0.9, 0.1, test_images=4)
    assert verdict(result, False, [])[0].startswith("With 4 test images nothing can be said of its worth: networks")


def test_weak_classes_are_named():
    recalls = {
        "distilled": Details(recall=[0.6, 0.85, None], confusion=None, calibration_error=0),
        "full": Details(recall=[0.9, 0.9, None], confusion=None, calibration_error=0),
    }
    result = _result(0.6, 0.5, 0.9, 0.01, details=recalls, class_names=["a", "b", "c"], task="multi-class")
    assert "It loses most on: a (60%) of the images recognised." in verdict(result, real=False, findings=[])
