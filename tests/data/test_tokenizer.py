"""Every kind of tokenizer: any text comes back, no text forges a turn, the same data give the same bytes; and the report's numbers."""

import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from components.data import shards
from components.data.tokenizing import tokenizer, tokenizer_report
from components.schema.config import BadInput

from .corpus import POEM, STRANGE, config_of, write_chats, write_documents

KINDS = ("bpe", "unigram", "character", "pretrained")
WORDS = "the tide boat harbour net rope 12 7 sails, morning evening Übermut naïve 漢字 wind under over and but is was goes comes".split(" ")


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 30))) + "." for _ in range(count)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("own")
    write_documents(root, {"prose": [*sentences(400, 0), POEM], "code": [f"def f{i}(x):\n    return x + {i}\n" for i in range(100)]}, {"prose": sentences(40, 1), "code": ["def g(x):\n    return x + 12\n"]})
    return write_chats(root, sentences(30, 2))


def gpt2_like(folder: Path, **settings) -> Path:
    """A tokenizer as others publish it: no padding, no chat template, one special token."""
    from tokenizers import decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = settings.pop("special", ["<|endoftext|>"])
    bpe.train_from_iterator(sentences(50, 3), trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    PreTrainedTokenizerFast(tokenizer_object=bpe, **{"eos_token": special[0], **settings}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory) -> dict[str, Path]:
    """The folder of each kind."""
    folders = {}
    for kind in KINDS:
        folders[kind] = folder = dataset / f"tokenizer-{kind}"
        folder.mkdir()
        own = {"id": str(gpt2_like(tmp_path_factory.mktemp("theirs")))} if kind == "pretrained" else {}
        tokenizer.run(config_of(tokenizer={"kind": kind, "vocab_size": 420, **own}), folder)
    return folders


def plain(folder: Path) -> Tokenizer:
    """As `tokens` encodes: special tokens in a text are text."""
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


def any_text(seed: int) -> str:
    """Characters from everywhere in Unicode (surrogates are no characters), among ones that tokenizers treat specially."""
    draw = random.Random(seed)
    ranges = [(0, 0x80), (0, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    characters = [draw.choice("  \n\n\t\0\r 0123456789<|>▁Ġ#'") if draw.random() < 0.4 else chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randint(0, 60))]
    return "".join(characters)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_whole(made, kind):
    ours, theirs = plain(made[kind]), AutoTokenizer.from_pretrained(made[kind])
    for text in [*STRANGE, *(any_text(seed) for seed in range(300)), POEM * 50]:
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ours.decode(ids, skip_special_tokens=False) == text
        assert theirs.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_written_in_a_text_are_text(made, kind):
    ours, theirs = plain(made[kind]), AutoTokenizer.from_pretrained(made[kind])
    special = {theirs.convert_tokens_to_ids(token) for token in tokenizer.SPECIAL_TOKENS}
    assert len(special) == 5 and theirs.unk_token_id not in special
    for token in tokenizer.SPECIAL_TOKENS:
        assert not special & set(ours.encode(f"a {token}{token} b", add_special_tokens=False).ids)
        assert theirs(token, add_special_tokens=False)["input_ids"] == [theirs.convert_tokens_to_ids(token)]  # and where they are meant, they are one token


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_knows_its_roles_and_renders_chats(made, kind):
    loaded = AutoTokenizer.from_pretrained(made[kind])
    assert (loaded.pad_token, loaded.eos_token) == ("<|endoftext|>", "<|end|>")
    assert len(loaded) == json.loads((made[kind] / "counts.json").read_text())["vocab_size"]
    chat = [{"role": "user", "content": " U\n"}, {"role": "assistant", "content": "A1"}]
    assert loaded.apply_chat_template(chat, tokenize=False) == "<|user|> U\n<|end|><|assistant|>A1<|end|>"
    encoded = loaded.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    learnt = [id for id, counts in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if counts]
    assert loaded.decode(learnt) == "A1<|end|>"


def test_words_are_cut_as_qwen2_cuts_them():
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert tokenizer.WORDS == PRETOKENIZE_REGEX


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_digits_stand_alone_and_special_tokens_stand_first(made, kind):
    loaded = plain(made[kind])
    assert [loaded.id_to_token(i) for i in range(5)] == list(tokenizer.SPECIAL_TOKENS)
    assert [t.strip("Ġ") for t in loaded.encode("1234 + 5", add_special_tokens=False).tokens if t.strip("Ġ")] == ["1", "2", "3", "4", "+", "5"]
    assert not [text for text in tokenizer_report.Pieces(loaded).texts if text and re.search(r"\d", text) and len(text) > 1]


def test_a_character_tokenizer_has_the_most_frequent_characters_and_bytes_for_the_rest(made, dataset):
    loaded = plain(made["character"])
    seen = Counter("".join(tokenizer.training_texts(made["character"], 10**9, {})))
    assert len(seen) < 420 - 261 and all(loaded.encode(c, add_special_tokens=False).tokens == [c] for c in seen)
    assert loaded.encode("ø", add_special_tokens=False).tokens == ["<0xC3>", "<0xB8>"]
    few = tokenizer._character(["aaaabbbccd" * 3], 261 + 2)
    assert few.encode("abcd", add_special_tokens=False).tokens == ["a", "b", "<0x63>", "<0x64>"] and few.get_vocab_size() == 263


AGAIN = """
import sys
from pathlib import Path
from components.data.tokenizing import tokenizer
from tests.data.corpus import config_of
tokenizer.run(config_of(tokenizer={"kind": sys.argv[1], "vocab_size": 420}), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("kind", ["bpe", "unigram", "character"])
def test_the_same_data_give_the_same_bytes_in_another_process_with_other_threads(made, dataset, kind):
    folder = dataset / f"again-{kind}"
    folder.mkdir()
    environment = {"PATH": "", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", AGAIN, kind, str(folder)], cwd=Path(__file__).parents[2], env=environment, check=True)
    for file in sorted(made[kind].iterdir()):
        assert (folder / file.name).read_bytes() == file.read_bytes(), file


def test_bpe_is_what_the_library_trains_on_the_whole_list(made):
    from tokenizers import Regex, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(tokenizer.WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    texts = list(tokenizer.training_texts(made["bpe"], 10**9, {}))
    assert len(texts) == 400 + 1 + 100 + 30 * 2
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=list(tokenizer.SPECIAL_TOKENS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    assert bpe.get_vocab() == Tokenizer.from_file(str(made["bpe"] / "tokenizer.json")).get_vocab()


# ---------------------------------------------------------------- what it is trained on


def test_a_limit_takes_the_same_share_of_every_domain_and_a_larger_one_takes_more_of_the_same(tmp_path):
    texts = {"long": [f"long {i} " + "x" * 100 for i in range(900)], "short": [f"short {i}" for i in range(3000)]}
    folder = write_chats(write_documents(tmp_path, texts, {}, shard_bytes=1), ["hello"]) / "tokenizer"
    size = sum(len(t) for group in texts.values() for t in group)
    taken: dict[str, Counter] = {}
    some = list(tokenizer.training_texts(folder, size // 4, taken))
    assert sum(len(t.encode()) for t in some) == sum(count["bytes"] for count in taken.values()) <= size // 4
    for group in ("long", "short"):
        assert taken[group]["bytes"] / sum(map(len, texts[group])) == pytest.approx(0.25, abs=0.04)
    more = list(tokenizer.training_texts(folder, size // 2, {}))
    assert len(set(some) - set(more)) < 0.02 * len(some)  # all but a few at the very limit
    assert [t for t in texts["long"] if t in set(some)] == [t for t in some if t in set(texts["long"])]  # in the data's order
    assert len(list(tokenizer.training_texts(folder, 10**9, {}))) == 3900 + 2


def test_a_vocabulary_that_the_data_cannot_fill_is_as_small_as_the_data_makes_it(tmp_path):
    folder = write_documents(tmp_path, {"a": ["abc", "abd"]}, {"a": ["abe"]}) / "tokenizer"
    folder.mkdir()
    tokenizer.run(config_of(tokenizer={"vocab_size": 1000}), folder)
    counts = json.loads((folder / "counts.json").read_text())
    assert counts["vocab_size"] == 264 == len(AutoTokenizer.from_pretrained(folder))  # 256 bytes, 5 special tokens, "ab", "abc", "abd"
    assert (counts["trained_on_documents"], counts["trained_on_messages"], counts["trained_on_bytes"]) == (2, 0, 6)


# ---------------------------------------------------------------- taken as it is


def test_a_pretrained_tokenizer_keeps_its_ids_and_gets_what_it_lacks(made, tmp_path):
    theirs, ours = AutoTokenizer.from_pretrained(gpt2_like(tmp_path)), AutoTokenizer.from_pretrained(made["pretrained"])
    assert ours.get_vocab().items() >= theirs.get_vocab().items() and len(ours) == len(theirs) + 4
    assert json.loads((made["pretrained"] / "counts.json").read_text())["added_tokens"] == ["<|assistant|>", "<|end|>", "<|system|>", "<|user|>"]


def test_a_template_that_marks_the_answer_and_its_tokens_stay(dataset, tmp_path):
    template = "{% for m in messages %}[{{ m['role'] }}]{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    source = gpt2_like(tmp_path / "theirs", special=["</s>", "<pad>"], pad_token="<pad>", chat_template=template)
    folder = dataset / "tokenizer-own-template"
    folder.mkdir()
    tokenizer.run(config_of(tokenizer={"kind": "pretrained", "id": str(source)}), folder)
    loaded, counts = AutoTokenizer.from_pretrained(folder), json.loads((folder / "counts.json").read_text())
    assert (loaded.eos_token, loaded.pad_token, loaded.chat_template) == ("</s>", "</s>", template)  # pad_token is what ends a document
    assert (counts["added_tokens"], counts["chat_template"], counts["end_of_document"]) == ([], "its own", "</s>")


def test_a_template_that_does_not_mark_the_answer_is_replaced_and_counts_say_so(dataset, tmp_path):
    source = gpt2_like(tmp_path / "theirs", chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    folder = dataset / "tokenizer-unmarked"
    folder.mkdir()
    tokenizer.run(config_of(tokenizer={"kind": "pretrained", "id": str(source)}), folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.CHAT_TEMPLATE
    assert json.loads((folder / "counts.json").read_text())["chat_template"] == "ours"


def test_a_hub_id_is_read_from_the_mirror(dataset, tmp_path, monkeypatch):
    gpt2_like(tmp_path / "someone" / "tokens")
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(tmp_path))
    counts = tokenizer.adopt(config_of(tokenizer={"kind": "pretrained", "id": "someone/tokens"}).tokenizer, tmp_path / "out")
    assert counts["id"] == "someone/tokens" and (tmp_path / "out/tokenizer.json").is_file()


def test_pickles_and_folders_without_a_tokenizer_are_refused(tmp_path):
    (tmp_path / "vocab.pkl").write_bytes(b"not looked at")
    with pytest.raises(BadInput, match=r"holds no tokenizer.json.*vocab.pkl, a pickle, which is never loaded"):
        tokenizer.adopt(config_of(tokenizer={"kind": "pretrained", "id": str(tmp_path)}).tokenizer, tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"cannot be loaded from .*so nothing can be tokenized. Check data.tokenizer.id"):
        tokenizer.adopt(config_of(tokenizer={"kind": "pretrained", "id": str(tmp_path)}).tokenizer, tmp_path / "out")


# ---------------------------------------------------------------- the report


def reports(made: dict[str, Path]) -> dict[str, dict]:
    return {kind: json.loads((folder / "report.json").read_text()) for kind, folder in made.items()}


def test_the_report_counts_what_a_plain_loop_counts(made, dataset):
    texts = [text for path in shards.paths(dataset / "documents/heldout") for table in shards.read(path) for text in table["text"].to_pylist()]
    for kind, report in reports(made).items():
        loaded, everything = plain(made[kind]), report["heldout"]["all"]
        tokens = [loaded.encode(text, add_special_tokens=False) for text in texts]
        count = sum(len(one) for one in tokens)
        assert everything["tokens"] == count and everything["documents"] == len(texts) == 41
        assert everything["bytes_per_token"] == round(sum(len(t.encode()) for t in texts) / count, 4)
        assert everything["tokens_per_word"] == round(count / sum(len(t.split()) for t in texts), 4)
        assert everything["lossless"] == 1.0 and set(report["heldout"]) == {"prose", "code", "all"}
        alone = [Counter(position for one in tokens[i].offsets for position in range(*one)) for i in range(len(texts))]  # how many tokens share a character
        spelled = sum(1 for i, text in enumerate(texts) for at in range(len(text)) if alone[i][at] > 1)
        assert everything["coverage"] == round(1 - spelled / sum(map(len, texts)), 4)
        used = {id for one in tokens for id in one.ids}
        assert report["unused"]["count"] == loaded.get_vocab_size() - len(used) - len(AutoTokenizer.from_pretrained(made[kind]).all_special_ids)
        assert len(report["longest_tokens"][0]) == max(end - start for one in tokens for start, end in one.offsets)  # the longest is used here


def test_the_report_tells_the_kinds_apart(made):
    said = reports(made)
    numbers = {kind: report["heldout"]["all"]["tokens_per_number"] for kind, report in said.items()}
    digits = re.findall(r"\d+", " ".join([*sentences(40, 1), "g(x): 12"]))
    assert numbers["bpe"] == numbers["character"] == round(sum(map(len, digits)) / len(digits), 4)  # digit by digit
    assert numbers["pretrained"] < numbers["bpe"]  # GPT-2's pattern glues them
    assert said["character"]["heldout"]["all"]["bytes_per_token"] < 1.2 < said["bpe"]["heldout"]["all"]["bytes_per_token"]


def test_the_yardstick_measured_against_itself_is_one(made, dataset):
    from tokenizers import decoders

    sample = list(tokenizer.training_texts(made["bpe"], 10**6, {}))
    itself = tokenizer_report._yardstick(sample, 420)
    itself.decoder = decoders.ByteLevel()
    itself.save(str(dataset / "yardstick.json"))
    report = tokenizer_report.report(dataset / "yardstick.json", dataset / "documents/heldout", sample)
    assert report["yardstick"]["ratio"] == {"prose": 1.0, "code": 1.0, "all": 1.0}
    assert report["yardstick"]["trained_on_bytes"] == sum(len(t.encode()) for t in sample) and "not GPT-2's own merges" in report["yardstick"]["what"]
    assert reports(made)["character"]["yardstick"]["ratio"]["all"] < 0.6  # and a worse one is seen to be worse
