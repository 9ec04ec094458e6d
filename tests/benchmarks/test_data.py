"""What the comparison with datatrove is measured on and judged by."""

import json
import random

import numpy as np
import pytest

from benchmarks import near
from benchmarks.corpus import EDITS, corpus, edited


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "documents.jsonl"
    source = random.Random(2)
    path.write_text("".join(json.dumps({"text": " ".join(f"w{source.randrange(500)}" for _ in range(300))}) + "\n" for _ in range(400)), encoding="utf-8")
    return path


def test_exact_similarities_are_those_of_sets():
    source = random.Random(4)
    texts = [" ".join(source.choices("abcd", k=source.randint(1, 30))) for _ in range(60)]
    sets = [{tuple(w[i : i + 5]) for i in range(max(1, len(w) - 4))} for w in (text.split() for text in texts)]
    expected = {(i, j): s for i in range(60) for j in range(i + 1, 60) if (s := len(sets[i] & sets[j]) / len(sets[i] | sets[j])) >= 0.05}
    assert near.exact_pairs(texts, 0.05) == pytest.approx(expected) and expected


def test_pairs_meet_where_a_band_has_equal_keys():
    bands = [np.array([7, 1, 7, 7]), np.array([1, 2, 3, 2])]
    assert near.meeting(bands, [np.arange(4)] * 2) == {(0, 2), (0, 3), (2, 3), (1, 3)}


def test_recall_and_precision_of_a_hand_worked_case():
    truth = {(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.5}
    assert near.quality({(0, 1), (1, 2)}, truth, 0.75) == near.Quality(recall=0.5, precision=0.5, pairs=2)


def test_the_same_documents_come_twice_and_copies_have_their_share_of_changed_words(jsonl):
    documents = corpus(jsonl, 1)
    assert documents == corpus(jsonl, 1)
    by_id = {d.id: d for d in documents}
    copies = [d for d in documents if d.copy_of]
    assert 0.04 < len(copies) / len(documents) < 0.13 and {d.edited for d in copies} <= set(EDITS)
    assert all(by_id[d.copy_of].copy_of is None for d in copies)


def test_an_edit_changes_its_share_of_the_words_and_no_white_space():
    text = " \n".join(f"w{i}" for i in range(4000))
    changed = edited(text, 0.2, random.Random(0))
    differ = sum(a != b for a, b in zip(text.split(), changed.split(), strict=True))
    assert 0.17 < differ / 4000 < 0.23 and changed.count(" \n") == 3999
