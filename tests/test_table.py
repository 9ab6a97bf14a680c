"""A table of labels beside images: however it names them, the same data set, and every row accounted for."""

import csv
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from openpyxl import Workbook
from PIL import Image

import medistill
from conftest import TINY
from dicom_files import hospital
from medistill.config import DataConfig
from medistill.data.load import load
from medistill.errors import DataError


def rows_of(folder, images=24, suffix=".png"):
    """Images in folders that mean nothing, and what a table says of them."""
    draw, rows = np.random.default_rng(0), []
    for number in range(images):
        place = folder / "scans" / f"batch{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (20, 20), dtype=np.uint8)).save(place / f"img{number}{suffix}")
        rows.append(
            {
                "file": f"scans/batch{number % 3}/img{number}{suffix}", "diagnosis": ("cyst", "tumour", "normal")[number % 3],
                "Patient ID": f"P{number // 2}", "scanner": "old" if number % 2 else "new",
            }
        )  # fmt: skip
    return rows


def write(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def as_excel(path, rows):
    book = Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(path)


def test_every_kind_of_table_gives_the_same_data(tmp_path):
    rows = rows_of(tmp_path)
    write(tmp_path / "a.csv", rows)
    write(tmp_path / "b.csv", rows, ";", "utf-8-sig")
    write(tmp_path / "c.tsv", rows, "\t")
    as_parquet(tmp_path / "d.parquet", rows)
    as_excel(tmp_path / "e.xlsx", rows)
    found = [load(tmp_path / name) for name in ("a.csv", "b.csv", "c.tsv", "d.parquet", "e.xlsx")]
    assert len({dataset.fingerprint["sha256"] for dataset in found}) == 1
    assert found[0].description.class_names == ("cyst", "normal", "tumour")
    assert "images were found by path" in found[0].description.notes
    assert set(found[0].train.sites.tolist()) == {"scanner 1", "scanner 2"}
    for first, second in itertools.combinations(found[0].splits.values(), 2):
        assert not set(first.patients.tolist()) & set(second.patients.tolist())


@pytest.mark.parametrize("named", ["name", "name without ending"])
def test_images_are_found_by_name(tmp_path, named):
    rows = rows_of(tmp_path)
    expected = load(write(tmp_path / "whole.csv", rows)).fingerprint["sha256"]
    for row in rows:
        name = row["file"].rsplit("/", 1)[1]
        row["file"] = name if named == "name" else name.removesuffix(".png")
    dataset = load(write(tmp_path / "short.csv", rows))
    assert f"images were found by {named}" in dataset.description.notes
    assert dataset.fingerprint["sha256"] == expected


@pytest.mark.parametrize("attribute", ["SOPInstanceUID", "PatientID"])
def test_images_are_found_by_what_dicom_headers_say(tmp_path, attribute):
    source = hospital(tmp_path / "set")
    files = sorted(source.rglob("*.dcm"))
    headers = {file: pydicom.dcmread(file, stop_before_pixels=True) for file in files}
    rows = {
        str(headers[f].get(attribute)): {attribute: str(headers[f].get(attribute)), "label": f.parent.name}
        for f in files
    }
    dataset = load(write(source / "labels.csv", list(rows.values())))
    assert dataset.description.class_names == ("healthy", "tumour")
    assert sum(map(len, dataset.splits.values())) == len(files)
    means = {name: split.images.mean(axis=(1, 2, 3)) for name, split in dataset.splits.items()}
    for name, split in dataset.splits.items():
        assert ((means[name] > 0) == (split.targets[:, 1] == 1)).all(), "each image has its own label"
    assert load(source).fingerprint == dataset.fingerprint, "labels.csv in a folder is found"


def test_findings_are_columns_of_zeros_and_ones_or_words_with_bars(tmp_path):
    rows = rows_of(tmp_path)
    names = ("edema", "effusion")
    columns = [{"file": r["file"], "edema": i % 2, "effusion": int(i % 3 == 0)} for i, r in enumerate(rows)]
    words = [
        {"file": r["file"], "Finding Labels": "|".join(n for n in names if r[n]) or "No Finding"} for r in columns
    ]
    first, second = load(write(tmp_path / "a.csv", columns)), load(write(tmp_path / "b.csv", words))
    assert first.task.kind == second.task.kind == "multi-label" and first.description.class_names == names
    assert first.fingerprint["sha256"] == second.fingerprint["sha256"]


def test_columns_are_named_by_the_user(tmp_path):
    rows = [{"bild": r["file"], "befund": r["diagnosis"], "nr": r["Patient ID"]} for r in rows_of(tmp_path)]
    path = write(tmp_path / "x.csv", rows)
    with pytest.raises(DataError, match=r"no column of labels among 3; .*data.columns.label=COLUMN"):
        load(path)
    dataset = load(path, DataConfig(columns={"label": "befund", "patient": "nr"}))
    assert dataset.description.class_names == ("cyst", "normal", "tumour") and dataset.train.patients is not None
    with pytest.raises(DataError, match=r"no column 'befunt'.*did you mean 'befund'"):
        load(path, DataConfig(columns={"label": "befunt"}))


def test_nothing_is_left_out_silently(tmp_path):
    rows = rows_of(tmp_path)
    rows[3]["diagnosis"] = ""
    gone = [{**rows[0], "file": f"scans/batch0/absent{i}.png"} for i in range(2)]
    notes = load(write(tmp_path / "x.csv", rows[:-4] + gone)).description.notes
    assert "4 images are not in the table and were left out" in notes
    assert "1 images have no label and were left out" in notes
    assert "2 of 22 rows name no image that is there" in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: [*r, {**r[0], "diagnosis": "tumour"}], "rows 2 and 26 name the same image and differ"),
        (lambda r: [{**row, "split": "development"} for row in r], "row 2 has another split; allowed: train"),
        (
            lambda r: [{**row, "file": f"x{i}"} for i, row in enumerate(r)],
            r"no column names any of 24 images \(their names end in .png\)",
        ),
        (lambda r: [{**row, "diagnosis": f"text {i}"} for i, row in enumerate(r)], "24 different labels in 24 rows"),
        (lambda r: [{**row, "split": "test"} for row in r], "names no training image"),
    ],
    ids=["contradiction", "split", "names", "labels", "test alone"],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "x.csv", change(rows_of(tmp_path))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row"), (b"file,label\n", "holds no row"), (b"a,a\n1,2\n", "two columns 'a'"),
        (b"file,label\nx.png,a,b\n", "row 2 has 3 cells"),
    ],
)  # fmt: skip
def test_damaged_tables_are_one_line(tmp_path, content, message):
    rows_of(tmp_path)
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "x.csv")
    for name in ("x.parquet", "x.xlsx"):
        (tmp_path / name).write_bytes(content + b"no such file")
        with pytest.raises(DataError, match="cannot be read"):
            load(tmp_path / name)


def test_splits_of_the_table_are_kept(tmp_path):
    rows = [{**row, "split": ("train", "train", "valid", "test")[i // 6]} for i, row in enumerate(rows_of(tmp_path))]
    dataset = load(write(tmp_path / "x.csv", rows))
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 12, "val": 6, "test": 6}


def test_grades_come_in_order_of_their_numbers(tmp_path):
    rows = [{**row, "diagnosis": str(i % 12)} for i, row in enumerate(rows_of(tmp_path, 48))]
    dataset = load(write(tmp_path / "x.csv", rows), DataConfig(task="ordinal"))
    assert dataset.description.class_names == tuple(map(str, range(12))) and dataset.task.kind == "ordinal"


def test_every_command_reads_the_table_as_it_was_read_for_distilling(tmp_path, cli):
    """Also where a file is unreadable, and where columns are named by the user; another table calls them otherwise."""
    rows = [{"bild": r["file"], "befund": r["diagnosis"], "nr": r["Patient ID"]} for r in rows_of(tmp_path, 48)]
    (tmp_path / rows[5]["bild"]).write_bytes(b"no image")
    path = write(tmp_path / "x.csv", rows)
    settings = {
        "method": {"name": "dm", "iterations": 4, "networks": 2, "filters": 8, "real_batch": 8},
        "data": {"columns": {"label": "befund", "patient": "nr"}, "unreadable": 0.03},
    }
    medistill.distill(path, out=tmp_path / "p", ipc=2, settings=settings)
    result = medistill.evaluate(tmp_path / "p", on=path, config=TINY)
    assert result["data"]["same_as_distilled"]
    other = [{"file": r["bild"], "label": r["befund"]} for r in rows if r != rows[5]]
    assert medistill.train(tmp_path / "p", on=write(tmp_path / "y.csv", other), config=TINY)["test_images"] > 0


def labels_by_file(dataset):
    """The label of each image by its content."""
    names = dataset.description.class_names
    return {
        image.tobytes(): names[int(target.argmax())]
        for split in dataset.splits.values()
        for image, target in zip(split.images, split.targets, strict=True)
    }


def numbered_files(folder, count=30, suffix=".png"):
    for number in range(1, count + 1):
        Image.fromarray(np.full((20, 20), 5 * number, np.uint8)).save(folder / f"{number}{suffix}")


def test_a_running_number_is_no_file_name(tmp_path):
    numbered_files(tmp_path)
    rows = [
        {"Nr": 31 - n, "file": f"{n}.png" if n != 7 else "absent.png", "label": "odd" if n % 2 else "even"}
        for n in range(1, 31)
    ]
    for columns in (None, {"file": "file"}):
        found = labels_by_file(load(write(tmp_path / "x.csv", rows), DataConfig(columns=columns)))
        assert len(found) == 29 and all(
            name == ("odd" if image[0] // 5 % 2 else "even") for image, name in found.items()
        )


@pytest.mark.parametrize(
    "spelled",
    [
        lambda n: f".\\{n}.png",
        lambda n: f"./{n}.png",
        lambda n: f"/data/x/{n}.png",
        lambda n: f"{n}.PNG",
        lambda n: f"{n}.jpg",
    ],
    ids=["backslash", "dot", "elsewhere", "capitals", "other ending"],
)
def test_names_are_found_however_they_are_spelled(tmp_path, spelled):
    numbered_files(tmp_path)
    rows = [{"file": spelled(n), "label": "odd" if n % 2 else "even"} for n in range(1, 31)]
    found = labels_by_file(load(write(tmp_path / "x.csv", rows)))
    assert len(found) == 30 and all(name == ("odd" if image[0] // 5 % 2 else "even") for image, name in found.items())


def test_a_name_that_several_files_have_is_refused(tmp_path):
    rows = rows_of(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        numbered_files(tmp_path / folder, 3)
    with pytest.raises(DataError, match="row 2 names an image by a name that 2 files have; give paths"):
        load(
            write(
                tmp_path / "x.csv",
                [{"file": "1.png", "label": "a"}, *({"file": r["file"], "label": "b"} for r in rows[:1])],
            )
        )


def test_patients_without_zeros_are_the_same_patients(tmp_path):
    """As Excel writes 000095."""
    source = hospital(tmp_path / "set")
    rows = []
    for number, file in enumerate(sorted(source.rglob("*.dcm"))):
        made = pydicom.dcmread(file)
        made.PatientID = f"{number // 2 + 90:06d}"
        made.save_as(file)
        rows.append({"PatientID": str(number // 2 + 90), "label": file.parent.name})
    dataset = load(write(source / "x.csv", rows[::2]))
    assert (
        sum(map(len, dataset.splits.values())) == 48 and "images were found by patient" in dataset.description.notes
    )


def test_empty_labels_are_no_answer_and_numbers_are_numbers(tmp_path):
    rows = rows_of(tmp_path)
    words = ["x|y", "x", "", "y", "no finding", "nan"] * 4
    dataset = load(
        write(tmp_path / "a.csv", [{"file": r["file"], "findings": w} for r, w in zip(rows, words, strict=True)])
    )
    assert "8 images have no label and were left out" in dataset.description.notes
    grades = ["0.0", "5", "10.0", "2.5"] * 6
    dataset = load(
        write(tmp_path / "b.csv", [{"file": r["file"], "grade": g} for r, g in zip(rows, grades, strict=True)])
    )
    assert dataset.description.class_names == ("0", "2.5", "5", "10")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"edema": lambda i: i % 2, "mass": lambda i: "" if i == 3 else i % 2},
            "mass: has 1 cells that are neither 0 nor 1",
        ),
        ({"label": lambda i: ("Tumor", "tumor", "cyst")[i % 3]}, "'Tumor' and 'tumor', which differ in case alone"),
    ],
    ids=["a blank", "case"],
)
def test_labels_that_cannot_be_told_are_refused(tmp_path, columns, message):
    rows = [
        {"file": row["file"], **{name: of(i) for name, of in columns.items()}}
        for i, row in enumerate(rows_of(tmp_path))
    ]
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "x.csv", rows))


def test_an_image_whose_patient_is_not_named_counts_as_one_of_its_own(tmp_path):
    rows = rows_of(tmp_path, 48)
    for row in rows[::2]:
        row["Patient ID"] = ""
    dataset = load(write(tmp_path / "x.csv", rows))
    assert "24 of 48 images name no patient, and count as patients of their own" in dataset.description.notes
    everyone = [p for split in dataset.splits.values() for p in split.patients.tolist()]
    assert len(set(everyone)) == 48


def test_two_tables_called_labels_are_refused(tmp_path):
    rows = rows_of(tmp_path)
    write(tmp_path / "labels.csv", rows)
    as_excel(tmp_path / "Labels.xlsx", rows)
    with pytest.raises(DataError, match=r"has the tables Labels.xlsx and labels.csv; name the one that is right"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["sep", "utf-16", "blank lines", "second sheet"])
def test_tables_as_office_programs_write_them(tmp_path, kind):
    rows = rows_of(tmp_path)
    expected = load(write(tmp_path / "plain.csv", rows)).fingerprint["sha256"]
    path = write(tmp_path / "x.csv", rows, ";", "utf-16" if kind == "utf-16" else "utf-8")
    if kind == "sep":
        path.write_text("sep=;\n" + path.read_text())
    elif kind == "blank lines":
        path.write_text("\n\n" + path.read_text().replace("\n", "\n\n"))
    elif kind == "second sheet":
        path, book = tmp_path / "x.xlsx", Workbook()
        book.active.append(["what this is"])
        sheet = book.create_sheet()
        for row in ([*rows[0]], *([*r.values()] for r in rows)):
            sheet.append(row)
        book.save(path)
    assert load(path).fingerprint["sha256"] == expected


def test_a_missing_quotation_mark_is_told(tmp_path):
    rows = [{"remark": f"{n} mm", **row} for n, row in enumerate(rows_of(tmp_path))]
    path = write(tmp_path / "x.csv", rows)
    path.write_text(path.read_text().replace("5 mm", '"5 mm', 1).replace("20 mm", '20 mm"', 1))
    with pytest.raises(DataError, match="cannot be read|cell of many lines"):
        load(path)
