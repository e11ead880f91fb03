"""The real lists of the data sets: counts, classes, clients, overlaps, real tweets.

They are not part of the repository; FEDCMI_DATA_DIR names the folder that has them.
"""

import collections
import importlib
import os
import pathlib
import re

import numpy as np
import pytest

from fedcmi_jax.data import raw
from fedcmi_jax.data.catalog import CATALOG

# The package's names are those of the loaders; their modules have the lists.
ave, crisismmd, cremad, modelnet40 = (
    importlib.import_module(f"fedcmi_jax.data.{name}")
    for name in ("ave", "crisismmd", "cremad", "modelnet40")
)

FOLDER = pathlib.Path(os.environ.get("FEDCMI_DATA_DIR", "../shared/data"))


def real(*path):
    """A real file or folder; skips the test where it is absent."""
    found = FOLDER.joinpath(*path)
    if not found.exists():
        pytest.skip(f"{found} is absent; set FEDCMI_DATA_DIR to run this test")
    return found


def class_counts(rows):
    return [n for _, n in sorted(collections.Counter(r.label for r in rows).items())]


def test_cremad():
    folder = real("cremad")
    train = cremad.read_split(folder / "train.csv")
    test = cremad.read_split(folder / "test.csv")
    assert (len(train), len(test)) == (6698, 744)
    assert (len(train), len(test)) == (CATALOG["cremad"].train, CATALOG["cremad"].test)
    # In the order NEU, HAP, SAD, FEA, DIS, ANG.
    assert class_counts(train) == [973, 1148, 1131, 1138, 1142, 1166]
    assert class_counts(test) == [114, 123, 140, 133, 129, 105]
    kept, notes = raw.layout.without_test_samples(train, test, lambda c: c.id, "clips")
    assert (len(kept), notes) == (6698, ())
    clients = raw.layout.client_ids([c.actor for c in train], [c.actor for c in test])
    assert set(clients[0]) == set(clients[1]) == set(range(91))


def test_ave():
    folder = real("ave")
    test = ave.read_split(folder / "testSet.txt")
    names = tuple(dict.fromkeys(event.class_name for event in test))
    assert len(names) == CATALOG["ave"].classes == 28
    assert names[:3] == ("Church bell", "Male speech, man speaking", "Bark")
    assert names[-1] == "Mandolin"
    train = ave.read_split(folder / "trainSet.txt", names)
    validation = ave.read_split(folder / "valSet.txt", names)
    assert (len(train), len(validation), len(test)) == (3338, 402, 402)
    assert ave.without_empty_events(train) == (train, ())
    kept, (note,) = raw.layout.without_test_samples(
        train, test, lambda e: e.id, "videos"
    )
    assert (len(kept), len(test)) == (CATALOG["ave"].train, CATALOG["ave"].test)
    assert note.startswith("9 training rows of 8 videos dropped, also in the test")
    assert note.count(",") == 8
    assert {e.class_name for e in kept} == set(names)


def test_ave_annotations_have_no_header_and_one_empty_event():
    events = ave.read_split(real("ave", "Annotations.txt"))
    assert len(events) == 4143
    assert events[0][:4] == ("Church bell", "RUhOCu3LNXM", 0.0, 10.0)
    kept, (note,) = ave.without_empty_events(events)
    assert len(kept) == 4142
    assert note.startswith("1 events dropped, they end where they start: ")


def tweets(split):
    folder = real("crisismmd", "crisismmd_datasplit_all")
    return crisismmd.read_split(folder / f"task_informative_text_img_{split}.tsv")


def test_crisismmd():
    train, dev, test = (tweets(split) for split in ("train", "dev", "test"))
    assert (len(train), len(dev), len(test)) == (13_608, 2_237, 2_237)
    entry = CATALOG["crisismmd"]
    assert (len(train), len(test)) == (entry.train, entry.test)
    assert class_counts(train) == [5267, 8341]
    assert class_counts(test) == [864, 1373]
    clients = raw.layout.client_ids([t.event for t in train], [t.event for t in test])
    assert set(clients[0]) == set(clients[1]) == set(range(7))
    _, notes = raw.layout.without_test_samples(
        train, test, lambda t: t.tweet_id, "tweets"
    )
    assert notes == ()


def test_real_tweets_are_cleaned():
    by_id = {t.tweet_id: t.text for t in tweets("train") + tweets("test")}
    cleaned = raw.text.clean(by_id["917791291823591425"])
    assert cleaned == (
        "@Cal_OES: PLS SHARE: We\u2019re capturing wildfire response, recovery info "
        "here:"
    )
    assert "hunting \u26a1\ufe0f MontBlancMarathon 80k" in raw.text.clean(
        by_id["878185882431389696"]
    )


def test_no_real_tweet_keeps_mojibake():
    """Signs of each of the three accidents, before and after."""
    signs = {
        "Windows-1252": "\u00e2\u20ac|\u00c3[\u0080-\u00bf]",
        "Mac Roman": "\u201a\u00c4",
        "half an emoji": "[\u1f00-\u1faf][0-9A-F]",
    }
    texts = {t.text for split in ("train", "dev", "test") for t in tweets(split)}
    assert len(texts) == 16_058
    cleaned = [raw.text.clean(text) for text in texts]
    for sign in signs.values():
        assert sum(bool(re.search(sign, text)) for text in texts) > 250
        assert not any(re.search(sign, text) for text in cleaned)
    assert not any("http" in text or "#" in text for text in cleaned)
    assert not any(text.startswith("RT ") for text in cleaned)
    assert all(cleaned), "a text that is nothing but a URL"
    # What was sound stays: no Arabic or Cyrillic letter is lost.
    letters = re.compile("[\u0400-\u04ff\u0600-\u06ff]")
    for text in texts:
        before = collections.Counter(letters.findall(text))
        after = collections.Counter(letters.findall(raw.text.repair_mojibake(text)))
        assert before <= after


def test_the_default_length_holds_every_real_tweet():
    lengths = [len(raw.text.tokenize(raw.text.clean(t.text))) for t in tweets("train")]
    assert max(lengths) <= 48
    assert 10 < np.median(lengths) < 20


def test_modelnet40():
    folder = real("modelnet40")
    train = modelnet40.read_split(folder / "train.txt")
    test = modelnet40.read_split(folder / "test.txt")
    assert (len(train), len(test)) == (9843, 2468)
    entry = CATALOG["modelnet40"]
    assert (len(train), len(test)) == (entry.train, entry.test)
    assert len(class_counts(train)) == len(class_counts(test)) == entry.classes == 40
    assert train[0].stem == "airplane/train/airplane_0001.obj.shaded_v"
    _, notes = raw.layout.without_test_samples(train, test, lambda m: m.stem, "models")
    assert notes == ()
