"""Who goes where: exact, disjoint, and a function of content and seed."""

from collections import Counter, defaultdict
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgclf.core.errors import ConfigError, DataError
from imgclf.data.dataset import SPLIT_NAMES, ArrayReader, Sample, Source
from imgclf.data.sources.folder import FileReader
from imgclf.data.split import (
    Split,
    choose_samples,
    content_key,
    make_split,
    match_rows,
    open_fractions,
    pack_contents,
    read_split,
    seen_refs,
    unpack_contents,
    write_split,
)

NO_READER = ArrayReader({})


def content(key):
    return sha256(str(key).encode("utf-8", "surrogateescape")).hexdigest()


def source(samples):
    samples = tuple(samples)
    return Source("set", tuple(sorted({s.label for s in samples})), samples, NO_READER)


def singles(sizes):
    """Classes c0, c1, … of the given sizes, every image with its own content."""
    return [Sample(f"c{c}/{i}.png", f"c{c}", sha256=content((c, i))) for c, n in enumerate(sizes) for i in range(n)]


def places(split):
    return {sample.ref: sample.split for sample in split.rows}


def by_content(split):
    return {(sample.label, sample.sha256): sample.split for sample in split.rows}


sizes_of = st.lists(st.integers(1, 40), min_size=1, max_size=8)
fractions_of = st.sampled_from(
    [(0.7, 0.15, 0.15), (0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.0, 0.1), (0.6, 0.4, 0.0)]
)


@given(sizes_of, fractions_of, st.integers(0, 5))
def test_counts_are_exact_and_every_class_trains(sizes, fractions, seed):
    split = make_split(source(singles(sizes)), fractions, seed)
    total, room = sum(sizes), sum(sizes) - len(sizes)
    found = Counter(sample.split for sample in split.rows)
    test = min(int(fractions[2] * total + 0.5 + 1e-9), room)
    valid = min(int(fractions[1] * total + 0.5 + 1e-9), room - test)
    assert (found["train"], found["valid"], found["test"]) == (total - valid - test, valid, test)
    assert all(counts["train"] >= 1 for counts in split.counts().values())
    assert len(split.rows) == total
    assert sum(len(split.samples(name)) for name in SPLIT_NAMES) == total


@given(st.lists(st.integers(20, 60), min_size=2, max_size=6), st.integers(0, 5))
def test_each_class_gives_its_share(sizes, seed):
    for counts, n in zip(make_split(source(singles(sizes)), seed=seed).counts().values(), sizes, strict=True):
        assert abs(counts["test"] - 0.15 * n) <= 1
        assert abs(counts["valid"] + counts["test"] - 0.3 * n) <= 1.5


@given(sizes_of, st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_names_do_not_matter(sizes, random, seed):
    samples = singles(sizes)
    expected = make_split(source(samples), seed=seed)
    renamed = [replace(s, ref=f"{random.random()}-{i}") for i, s in enumerate(samples)]
    random.shuffle(renamed)
    other = make_split(source(renamed), seed=seed)
    assert by_content(other) == by_content(expected)
    assert other.digest == expected.digest


def test_the_seed_and_the_content_matter():
    samples = source(singles([40, 40]))
    assert places(make_split(samples, seed=1)) != places(make_split(samples, seed=2))
    assert make_split(samples, seed=1).digest != make_split(samples, seed=2).digest


unit_of = st.tuples(*(st.integers(0, most) for most in (2, 20, 20, 30)))


@given(st.lists(unit_of, min_size=2, max_size=60), st.integers(0, 3))
def test_groups_and_copies_by_bytes_or_by_pixels_stay_together_also_across_classes(rows, seed):
    samples = [
        Sample(f"{i}.png", f"c{c}", f"g{g}" if g < 16 else None, None, content(byte), f"p{pixel}" if pixel < 9 else "")
        for i, (c, g, byte, pixel) in enumerate(rows)
    ]
    split = make_split(source(samples), seed=seed)
    homes = defaultdict(set)
    for sample in split.rows:
        for name in ("group", "sha256", "pixels"):
            homes[name, getattr(sample, name) or sample.ref].add(sample.split)
    assert all(len(home) == 1 for home in homes.values())
    assert all(counts["train"] >= 1 for counts in split.counts().values())


def test_copies_in_different_groups_keep_these_together():
    pairs = [(i, half) for i in range(50) for half in "ab"]
    samples = [Sample(f"{i}{half}.png", f"c{i % 2}", f"{i}{half}", None, content(i)) for i, half in pairs]
    found = places(make_split(source(samples)))
    assert all(found[f"{i}a.png"] == found[f"{i}b.png"] for i in range(50))
    assert Counter(found.values()) == {"train": 72, "valid": 14, "test": 14}


def test_a_class_whose_only_group_would_leave_train_gets_it_back():
    large = [Sample(f"{i}.png", "big", group="g1", sha256=content(i)) for i in range(70)]
    mixed = [Sample(f"m{i}.png", "big", group="g0", sha256=content(-i - 1)) for i in range(20)]
    rare = Sample("rare.png", "rare", group="g0", sha256=content("rare"))
    split = make_split(source([*large, *mixed, rare]))
    assert split.counts()["rare"] == {"train": 1, "valid": 0, "test": 0}
    without = make_split(source([*large, *mixed]))
    assert len(without.samples("train")) == 70


def test_groups_come_near_the_fractions():
    samples = [Sample(f"{i}.png", f"c{i % 2}", group=f"g{i // 4}", sha256=content(i)) for i in range(400)]
    for counts in make_split(source(samples)).counts().values():
        assert abs(counts["train"] - 140) <= 4
        assert abs(counts["valid"] - 30) <= 4
        assert abs(counts["test"] - 30) <= 4


def test_given_splits_stay_and_what_is_missing_is_cut_from_train():
    samples = [replace(s, split="test" if i % 4 == 0 else "train") for i, s in enumerate(singles([80, 80]))]
    split = make_split(source(samples))
    before = {s.ref for s in samples if s.split == "test"}
    assert {s.ref for s in split.samples("test")} == before
    assert len(split.samples("valid")) == round(120 * 0.15 / 0.85)
    assert split.notes == ("no valid split found: 18% of the train images are held out as valid",)


def test_three_given_splits_are_left_alone():
    samples = [replace(s, split=SPLIT_NAMES[i % 3]) for i, s in enumerate(singles([9, 9]))]
    split = make_split(source(samples))
    assert places(split) == {s.ref: s.split for s in samples}
    assert split.notes == ()


def test_zero_fractions_cut_nothing():
    samples = [replace(s, split="train") for s in singles([10, 10])]
    split = make_split(source(samples), (0.8, 0.2, 0.0))
    assert not split.samples("test")
    assert len(split.samples("valid")) == 4


def test_half_given_splits_are_refused():
    samples = [replace(s, split="train" if i else None) for i, s in enumerate(singles([4, 4]))]
    with pytest.raises(DataError, match="set it for all or for none"):
        make_split(source(samples))


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no image is left for train"):
        make_split(source(replace(s, split="test") for s in singles([3, 3])))


@pytest.mark.parametrize("fractions", [(0.0, 0.5, 0.5), (0.9, 0.2, -0.1), (70, 15, 15)])
def test_fractions_are_checked(fractions):
    with pytest.raises(ConfigError, match="that sum to 1"):
        make_split(source(singles([4, 4])), fractions)


def test_missing_digests_are_read_from_the_source():
    pixels = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    samples = tuple(Sample(f"x/{i}", "ab"[i % 2]) for i in range(20))
    split = make_split(Source("set", ("a", "b"), samples, ArrayReader({"x": pixels})))
    assert all(len(sample.sha256) == 64 for sample in split.rows)


def test_unknown_split_name():
    with pytest.raises(ConfigError, match="train, valid, test"):
        Split(()).samples("val")


# --- split.csv ---------------------------------------------------------------------------------------------------


def test_split_csv_round_trips_odd_names(tmp_path):
    names = [
        "=cmd.png",
        "-1.png",
        "a,b.png",
        "new\nline.png",
        "cr\rx.png",
        "\udcff.png",
        "'+x.png",
        " lead.png",
        "é.png",
    ]
    samples = [
        Sample(n, "=label" if i % 2 else "b", "@g" if i < 2 else None, None, content(n)) for i, n in enumerate(names)
    ]
    split = make_split(source(samples))
    write_split(split, tmp_path / "split.csv")
    assert read_split(tmp_path / "split.csv") == split.rows
    lines = (tmp_path / "split.csv").read_bytes()
    assert lines.startswith(b"path,label,group,split,sha256\n")
    assert b"\n=" not in lines


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("path,label\na,b\n", "path, label, split"),
        ("path,label,split\na,b,vaild\n", "line 2: split is 'vaild'"),
        ("path,label,split\na,b,train\na,b,test\n", "line 3: a is listed twice"),
    ],
)
def test_wrong_split_files_are_refused_with_the_line(tmp_path, text, match):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(DataError, match=match):
        read_split(tmp_path / "split.csv")


@given(
    sizes=st.lists(st.integers(2, 20), min_size=2, max_size=4),
    more=st.lists(st.integers(0, 20), min_size=4, max_size=4),
)
def test_new_images_leave_earlier_ones_where_they_were(tmp_path_factory, sizes, more):
    path = tmp_path_factory.mktemp("split") / "split.csv"
    first = make_split(source(singles(sizes)))
    write_split(first, path)
    grown = [n + more[c] for c, n in enumerate(sizes)]
    second = make_split(source(singles(grown)), file=path)
    after = places(second)
    assert all(after[ref] == split for ref, split in places(first).items())
    assert len(second.rows) == sum(grown)
    for name, fraction in (("test", 0.15), ("valid", 0.15)):
        found = len(second.samples(name))
        assert found >= len(first.samples(name))
        assert abs(found - fraction * sum(grown)) <= len(sizes) + 1


def test_what_changed_is_named(tmp_path):
    samples = singles([10, 10])
    write_split(make_split(source(samples)), tmp_path / "split.csv")
    home = places(make_split(source(samples)))
    changed = replace(samples[0], sha256=content("changed"))
    relabeled = replace(samples[1], label="c1")
    renamed = replace(samples[2], ref="c0/renamed.png")
    new = Sample("c0/new.png", "c0", sha256=content("new"))
    split = make_split(source([changed, relabeled, renamed, new, *samples[4:]]), file=tmp_path / "split.csv")
    assert split.notes == (
        "1 file newly assigned: c0/new.png",
        "1 file renamed, in the same split: c0/renamed.png",
    )
    assert split.findings == (
        "1 file missing or unreadable: c0/3.png",
        "1 file changed, in the same split: c0/0.png",
        "1 file relabeled, in the same split: c0/1.png",
    )
    found = places(split)
    assert found["c0/renamed.png"] == home["c0/2.png"]
    assert found["c0/0.png"] == home["c0/0.png"]


def test_labels_in_another_unicode_form_are_no_change(tmp_path):
    samples = [replace(s, label={"c0": "Caf\u00e9"}.get(s.label, s.label)) for s in singles([10, 10])]
    write_split(make_split(source(samples)), tmp_path / "split.csv")
    now = [replace(s, label={"Caf\u00e9": "Cafe\u0301"}.get(s.label, s.label)) for s in samples]
    split = make_split(source(now), file=tmp_path / "split.csv")
    assert (split.notes, split.findings) == ((), ())
    assert {s.label for s in split.rows} == {"Cafe\u0301", "c1"}
    assert all(found is not None for _, found in match_rows(read_split(tmp_path / "split.csv"), now))


@pytest.mark.parametrize("grouped", ["before", "now"])
def test_a_renamed_file_stays_where_it_was_whatever_group_is_given_now(tmp_path, grouped):
    samples = singles([20, 20])
    groups = [replace(s, group=f"g{i}") for i, s in enumerate(samples)]
    first = make_split(source(groups if grouped == "before" else samples), seed=1)
    write_split(first, tmp_path / "split.csv")
    now = [replace(s, ref=f"new/{s.ref}") for s in (groups if grouped == "now" else samples)]
    second = make_split(source(now), seed=2, file=tmp_path / "split.csv")
    assert by_content(second) == by_content(first)
    assert second.notes[0].startswith("40 files renamed, in the same split")
    assert second.findings == ()


def test_groups_and_copies_that_a_file_puts_in_two_splits_are_named(tmp_path):
    samples = [replace(s, group=f"g{i // 2}") for i, s in enumerate(singles([8]))]
    samples[6] = replace(samples[6], sha256=samples[0].sha256)
    rows = [f"{s.ref},c0,{'test' if i in (1, 6, 7) else 'train'}" for i, s in enumerate(samples)]
    (tmp_path / "mine.csv").write_text("\n".join(["path,label,split", *rows]))
    assert make_split(source(samples), file=tmp_path / "mine.csv").findings == (
        "train and test share 1 image (c0/0.png = c0/6.png): results on test will look better than they are",
        "train and test share 1 group (g0): results on test will look better than they are",
    )


def test_paths_in_a_split_file_may_be_written_otherwise(tmp_path):
    root = tmp_path / "photos"
    samples = singles([8, 8])
    (tmp_path / "link").symlink_to(root)
    root.mkdir()
    images = replace(source(samples), reader=FileReader(root))
    ways = (
        "{}",
        "./{}",
        "x/../{}",
        "photos/{}",
        f"{root}/{{}}",
        f"{tmp_path}/link/{{}}",
        f"{tmp_path}/x/../photos/./{{}}",
    )
    words = ("Val", "test ", "TRAINING")
    expected, rows = {}, ["path,label,split"]
    for i, sample in enumerate(samples):
        way = ways[i % len(ways)].format(sample.ref)
        rows.append(f"{way if i != 9 else way.replace('/', chr(92))},{sample.label},{words[i % 3]}")
        expected[sample.ref] = ("valid", "test", "train")[i % 3]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    split = make_split(images, file=tmp_path / "mine.csv")
    assert places(split) == expected
    assert (split.notes, split.findings) == ((), ())


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "it lists no image"),
        ([f"elsewhere/{i}.png,c0,test,{content(-i)}" for i in range(1, 4)], r"elsewhere/1.png is not an image of set"),
        (
            ["c0/0.png,c0,test,", "c0/typo.png,c0,test,"],
            r"does not fit the data; expected(.|\n)*c0/typo.png is not an image",
        ),
        (["c0/0.png,c0,test,", "./c0/0.png,c0,train,"], r"\./c0/0.png and another row are the same image"),
    ],
)
def test_a_split_file_that_does_not_fit_is_an_error(tmp_path, rows, match):
    (tmp_path / "mine.csv").write_text("\n".join(["path,label,split,sha256", *rows]))
    with pytest.raises(DataError, match=match):
        make_split(source(singles([4, 4])), file=tmp_path / "mine.csv")


def test_an_image_that_is_left_out_may_be_in_a_split_file(tmp_path):
    samples = singles([4, 4])
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "mine.csv").write_text("path,label,split\nbad.png,c0,test\nc0/0.png,c0,test\n")
    split = make_split(replace(source(samples), reader=FileReader(tmp_path)), file=tmp_path / "mine.csv")
    assert split.findings == ("1 file missing or unreadable: bad.png",)


@pytest.mark.parametrize(
    ("given", "fractions", "match"),
    [
        (("train", "test"), (0.6, 0.1, 0.3), "asks for 30% test, but set has its own test images: use --split 86/14/0"),
        (
            ("train", "valid"),
            (0.6, 0.1, 0.3),
            "asks for 10% valid, but set has its own valid images: use --split 67/0/33",
        ),
        (
            ("train", "valid", "test"),
            (0.7, 0.15, 0.15),
            "15% valid and 15% test, but set has its own valid and test images: drop",
        ),
    ],
)
def test_a_share_of_what_the_data_bring_is_refused(given, fractions, match):
    samples = source(replace(s, split=given[i % len(given)]) for i, s in enumerate(singles([30, 30])))
    with pytest.raises(ConfigError, match=match):
        make_split(samples, fractions)
    split = make_split(samples, open_fractions(given, fractions))
    assert {s.ref: s.split for s in split.rows if s.split != "train"}.items() >= {
        (s.ref, s.split) for s in samples.samples if s.split != "train"
    }


def test_known_content_keeps_its_place():
    rows = singles((20, 20))
    first = make_split(source(rows[:30]), seed=1)
    known = {content_key(row): row.split for row in first.rows}
    second = make_split(source(rows), seed=2, known=known)
    before, now = by_content(first), by_content(second)
    assert {key: now[key] for key in before} == before
    assert "images that keep their earlier split: 30" in second.notes


def test_places_that_the_data_give_come_before_known_ones():
    rows = [replace(row, split="test" if i % 2 else "train") for i, row in enumerate(singles((6, 6)))]
    split = make_split(source(rows), (1.0, 0.0, 0.0), known={content_key(row): "train" for row in rows})
    assert [row.split for row in split.rows] == [row.split for row in rows]


def test_a_file_over_given_splits(tmp_path):
    samples = [replace(s, split="test" if i % 4 == 0 else "train") for i, s in enumerate(singles([40, 40]))]
    first = make_split(source(samples))
    write_split(first, tmp_path / "split.csv")
    again = make_split(source(samples), file=tmp_path / "split.csv")
    assert again.rows == first.rows
    assert again.notes == ()
    more = [*samples, Sample("c0/t.png", "c0", split="test", sha256=content("t"))]
    assert places(make_split(source(more), file=tmp_path / "split.csv"))["c0/t.png"] == "test"


def test_the_test_images_are_those_of_the_test_folder_each_once_though_others_have_their_content():
    train, test = singles([4, 4]), [replace(s, ref=f"test/{s.ref}") for s in singles([6, 6])]  # 8 of 12 are in train
    rows = [replace(s, ref=f"train/{s.ref}", split="train") for s in train] + [replace(s, split="test") for s in test]
    data = source(rows)
    split, seen = make_split(data, (1, 0, 0)), unpack_contents(pack_contents(rows[:8]))
    chosen = choose_samples(data, split, seen, "test")
    assert [s.ref for s in chosen] == [s.ref for s in test]
    assert {s.ref for s in chosen} & seen_refs(data, seen) == {s.ref for s in test if int(s.ref[-5]) < 4}
    unseen = choose_samples(data, split, seen, None)
    assert [s.ref for s in unseen] == [s.ref for s in test if int(s.ref[-5]) >= 4]
    renamed = source(replace(s, ref=f"elsewhere/{i}", split=None) for i, s in enumerate(data.samples))
    assert [s.sha256 for s in choose_samples(renamed, split, seen, "test")].count(test[0].sha256) == 1
    assert len(choose_samples(renamed, split, seen, "test")) == 12
    equal = source([*(replace(s, ref=f"v/{s.ref}", split="valid") for s in train), *rows])
    assert len(choose_samples(equal, make_split(equal), frozenset(), "test")) == 12


def test_an_image_with_the_pixels_of_one_that_was_seen_was_seen():
    rows = [replace(s, pixels="p" * (i in (1, 5))) for i, s in enumerate(singles([4, 4]))]
    assert seen_refs(source(rows), frozenset({content_key(rows[1]), content_key(rows[2])})) == {
        rows[i].ref for i in (1, 2, 5)
    }


def test_packed_contents_come_out_again(make_source, monkeypatch):
    rows = make_source(n=5).samples
    assert unpack_contents(pack_contents(rows)) == {row.sha256[:16] for row in rows}
    assert pack_contents(rows) == pack_contents(reversed(rows))
    assert unpack_contents("no such text!") == frozenset()
    monkeypatch.setattr("imgclf.data.split.MAX_PACKED", len(rows) - 1)
    assert pack_contents(rows) == ""


def test_rows_are_matched_by_content_and_class_and_copies_by_name():
    rows = [Sample(ref, label, sha256=sha) for ref, label, sha in (("a", "x", "1"), ("b", "x", "1"), ("c", "y", "2"))]
    now = [Sample(ref, label, sha256=sha) for ref, label, sha in (("new", "x", "1"), ("b", "x", "1"), ("c", "x", "2"))]
    matched = [(row.ref, None if sample is None else sample.ref) for row, sample in match_rows(rows, now)]
    assert matched == [("a", "new"), ("b", "b"), ("c", None)]
