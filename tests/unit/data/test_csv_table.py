"""A CSV as data."""

import unicodedata

import pytest
from PIL import Image

from imgclf.core.errors import DataError
from imgclf.core.files import csv_text
from imgclf.data.sources.csv_table import open_table


@pytest.fixture
def photos(tmp_path):
    for i in range(4):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    return tmp_path


def table(folder, text):
    path = folder / "list.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_paths_and_labels(photos):
    text = f"label,path\ncat,0.png\ncat,./1.png\n\ndog,{photos / '2.png'}\ndog,3.png\n"
    source = open_table(table(photos, text))
    assert source.classes == ("cat", "dog")
    assert {s.ref: s.label for s in source.samples} == {
        "0.png": "cat", "1.png": "cat", str(photos / "2.png"): "dog", "3.png": "dog",
    }  # fmt: skip
    assert [source.open(s.ref)[0, 0, 0] for s in sorted(source.samples, key=lambda s: s.ref[-5])] == [0, 1, 2, 3]
    assert (source.name, source.notes) == ("list", ())


def test_split_group_extra_columns_and_byte_order_mark(photos):
    rows = "Path,Label,split,group,camera\n0.png,a,train,g1,x\n1.png,b,Train,,x\n2.png,a,val,,x\n3.png,b,testing,g2,x\n"
    source = open_table(table(photos, b"\xef\xbb\xbf" + rows.encode()))
    assert [(s.split, s.group) for s in source.samples] == [
        ("train", "g1"), ("train", None), ("valid", None), ("test", "g2"),
    ]  # fmt: skip
    assert source.notes == ("unused columns: camera",)


def test_splits_in_a_column_of_another_name_are_refused_instead_of_passed_over(photos):
    rows = "0.png,a,train\n1.png,b,Train\n2.png,a,val\n3.png,b,testing\n"
    with pytest.raises(
        DataError, match="column 'subset' holds Train, testing, train, val: rename it to split, or remove it"
    ):
        open_table(table(photos, f"path,label,subset\n{rows}"))
    assert open_table(table(photos, f"path,label,line\n{rows.replace('val', 'car')}")).samples[0].split is None
    every = "".join(f"{line},test\n" for line in rows.split())
    assert open_table(table(photos, f"path,label,split,old\n{every}")).samples[0].split == "train"


def test_cells_guarded_against_spreadsheets_come_back(photos):
    text = csv_text([("path", "label"), *((f"{i}.png", "-1" if i < 2 else "=1") for i in range(4))])
    assert open_table(table(photos, text)).classes == ("-1", "=1")


def test_repeated_rows(photos):
    text = "path,label\n0.png,a\n./0.png,a\n1.png,a\n2.png,b\n3.png,b\n"
    source = open_table(table(photos, text))
    assert len(source) == 4
    assert source.notes == ("repeated rows: 1",)


def test_all_problems_come_with_their_lines(photos):
    text = "path,label,split\n0.png,a,train\n0.png,b,train\n9.png,a,train\n1.png,,train\n,b,train\n2.png,b,somewhere\n"
    with pytest.raises(DataError) as caught:
        open_table(table(photos, text))
    text = "\n".join(caught.value.problems)
    for problem in (
        "line 3: 0.png is listed differently in line 2",
        "line 4: 9.png does not exist",
        "line 5: the label is empty",
        "line 6: the path is empty",
        "line 7: split is 'somewhere'",
    ):
        assert problem in text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "found nothing"),
        ("a;b\n", "path, label"),
        ("path,label,path\n", "each once"),
        ("path,label\n0.png\n", "line 2: 1 cells"),
        ("path,label\n0.png,a\n1.png,a\n", "at least 2 classes"),
        ("path,label,split\n0.png,a,test\n1.png,a,test\n2.png,b,test\n3.png,b,test\n", "no row has the split train"),
        ("path,label,split\n0.png,a,train\n1.png,a,\n2.png,b,train\n3.png,b,test\n", "line 3: split is empty"),
        ("path,label,split\n0.png,a,train\n1.png,a,train\n2.png,b,test\n3.png,b,test\n", "'b' has no image in train"),
        ('path,label\n"0.png,a\n', "not a CSV file"),
        ("path,label\n", "found none"),
        (f"path,label{'x' * 200_000}\n", "not a CSV file: .*field larger"),
        (
            "path,label\n0.png,K\xe4se\n1.png,b\n".encode("latin-1"),
            "not UTF-8 .*line 2: 'K\N{REPLACEMENT CHARACTER}se'",
        ),
        ("path,label\n0.png,a\n\xe4.png,b\n".encode("latin-1"), "save it as “CSV UTF-8”"),
        ("path,label\n0.png,a\n".encode("utf-16-le"), "zero bytes"),
        (b"\xff\xfep\0a", "starts as UTF-16"),
        (b"PK\3\4", "is a workbook"),
        ('path,label\n0.png, "a"\n1.png,b\n', "line 2: a space before a quote"),
        ("path,label,,\n0.png,a\n1.png,b,,,x\n", "line 3: 5 cells"),
    ],
)
def test_tables_that_are_refused(photos, text, match):
    with pytest.raises(DataError, match=match):
        open_table(table(photos, text))


@pytest.mark.parametrize(
    "text",
    [
        "path,label\n0.png,Käse\n1.png,b\n".encode("utf-16"),
        "path;label\n0.png;Käse\n1.png;b\n",
        "path\tlabel\n0.png\tKäse\n1.png\tb\n".encode("utf-16"),
        "path,label,,\n0.png,Käse,,\n1.png,b,,\n,,,\n",
        ",path,label,\n,0.png,Käse\n,1.png,b\n",
        "path, label\n 0.png, Käse\n1.png ,b \n",
    ],
)
def test_what_spreadsheets_make_of_a_table_is_read(photos, text):
    source = open_table(table(photos, text))
    assert [(s.ref, s.label) for s in source.samples] == [("0.png", "Käse"), ("1.png", "b")]
    assert source.notes == ()


def test_a_path_is_found_in_the_way_the_disk_spells_it(photos):
    composed, apart = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    (photos / "sub").mkdir()
    for i, name in enumerate((f"sub/{apart}", " 3.png", r"sub\4.png")):
        Image.new("L", (4, 4), i).save(photos / name)
    rows = [f" sub\\{composed}", " 3.png", "3.png", r"sub\4.png", r"sub\..\0.png"]
    text = "path,label\n" + "\n".join(f"{path},{'ab'[i % 2]}" for i, path in enumerate(rows))
    found = {sample.ref for sample in open_table(table(photos, text)).samples}
    assert found == {f"sub/{apart}", " 3.png", "3.png", r"sub\4.png", "0.png"}


def test_an_unnamed_column_that_holds_something_is_noted(photos):
    source = open_table(table(photos, ",path,label,,\n0,0.png,a\n1,1.png,b,,x\n"))
    assert source.notes == ("unused columns: one without a name",)


def test_names_are_compared_in_one_unicode_form(photos):
    composed, apart = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    text = f"path,label,group\n0.png,{composed},{apart}\n1.png,{apart},{composed}\n2.png,b,\n3.png,b,c\n"
    source = open_table(table(photos, text))
    assert len({sample.label for sample in source.samples}) == len(source.classes) == 2
    assert len({sample.group for sample in source.samples if sample.label != "b"}) == 1
    assert len(source.notes) == 1


def test_evaluation_accepts_less(photos):
    source = open_table(table(photos, "path,label\n0.png,a\n"), strict=False)
    assert source.classes == ("a",)


def test_a_table_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        open_table(tmp_path / "none.csv")
