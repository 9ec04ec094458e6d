"""A transformers folder as lm-eval's HFLM: the same requests, the same numbers, in less time.

What differs from HFLM is only how the work is laid out:

- texts are tokenized together, and a text that many requests share once;
- answers are generated with the decoder that training samples with (models/decoding.py); a row leaves the batch at its own first stop string, where HFLM
  goes on until every row of the batch has stopped by the same one (the text is cut at the first stop either way);
- choices that share a prompt share its computation (likelihood.py), and vocabulary scores are made only where an answer is scored;
- batches hold requests of like length, as many as memory takes; on a CPU they are computed side by side, one thread each.

Requests that ask for sampling or beams go to HFLM's own code. What was answered is written to a journal batch by batch, so a killed run goes on where it
was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from components.evaluation.batches import Journal, in_turn, rows_that_fit, side_by_side
from components.evaluation.likelihood import Scored, score
from components.models.build import read_tokenizer
from components.models.generate import generate
from components.models.quantized import readable
from components.schema.config import BadInput

# What a model's generation_config must say for our decoder to give what transformers' generate does; None = says nothing.
PLAIN = {
    "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_length": 0, "min_new_tokens": 0, "bad_words_ids": None, "sequence_bias": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip
TEXTS_AT_ONCE = 1000  # a tokenizer keeps some hundred bytes a token of what it reads at once
Requests = list[tuple[tuple[str, str], list[int], list[int]]]  # what lm-eval hands to _loglikelihood_tokens: texts, prompt ids, answer ids


def load_model(folder: Path, batch_size: int, device: str | None = None) -> LocalModel:
    """Load a checkpoint for measuring. Errors: BadInput where the folder is not a model with its tokenizer."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = read_tokenizer(folder)
        with readable(folder) as place:
            model = AutoModelForCausalLM.from_pretrained(place, local_files_only=True, use_safetensors=True, dtype="auto")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"evaluation: {folder} is not a causal language model with its tokenizer ({str(error).splitlines()[0]}), so it cannot be "
            "measured. Give a folder written by save_pretrained of both"
        ) from None
    return LocalModel(model.to(device), tokenizer, batch_size)


class LocalModel(HFLM):
    """HFLM over a loaded model."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.on_share: Callable[[float], None] = lambda share: None  # told the share of a call's requests that each batch was
        self.journal = Journal(None)
        self.counted: dict[str, int] = {}  # tokens of every text that was tokenized, until somebody clears it
        self.at_once = torch.get_num_threads() if self.device.type == "cpu" else 1  # batches that are computed side by side

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        self._encode_all([text for text in texts if text not in self.counted])
        return [self.counted[text] for text in texts]

    # ---------------------------------------------------------------- likelihood

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each answer after its prompt."""
        pairs = [self._split(*request.args) for request in requests]
        ids = self._encode_all([text for prompt, answer in pairs if prompt for text in (prompt, prompt + answer)])
        return self._loglikelihood_tokens([self._encoded(request.args, pair, ids) for request, pair in zip(requests, pairs, strict=True)])

    @staticmethod
    def _split(prompt: str, answer: str) -> tuple[str, str]:
        """Spaces at the prompt's end belong to the answer, as lm-eval has it."""
        bare = prompt.rstrip()
        return (bare, prompt[len(bare) :] + answer) if prompt else (prompt, answer)

    def _encode_all(self, texts: list[str]) -> dict[str, list[int]]:
        """`tok_encode` of each text, many at a time: a text that begins with the first token gets no second one."""
        return self._tokenized(texts, self.tokenizer.decode(self.prefix_token_id))

    def _tokenized(self, texts: list[str], first: str | None) -> dict[str, list[int]]:
        """The ids of each different text. `first`: the text of a token that a text may begin with already."""
        distinct = list(dict.fromkeys(texts))
        ids: dict[str, list[int]] = {}
        for begun in (False, True):
            part = [text for text in distinct if has_bos_prefix(text, first) is begun]
            special = {"add_special_tokens": False} if begun else {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
            for start in range(0, len(part), TEXTS_AT_ONCE):
                some = part[start : start + TEXTS_AT_ONCE]
                ids.update(zip(some, self.tokenizer(some, return_attention_mask=False, return_token_type_ids=False, **special)["input_ids"], strict=True))
        self.counted.update((text, len(tokens)) for text, tokens in ids.items())
        return ids

    def _encoded(self, texts: tuple[str, str], pair: tuple[str, str], ids: dict[str, list[int]]) -> tuple[tuple[str, str], list[int], list[int]]:
        prompt, answer = pair
        if prompt:
            return texts, ids[prompt], ids[prompt + answer][len(ids[prompt]) :]
        alone = self.tok_encode(answer, add_special_tokens=False)
        first = self.prefix_token_id
        return (texts, [first], alone) if alone[:1] != [first] else (texts, alone[:1], alone[1:])

    def _loglikelihood_tokens(self, requests: Requests, disable_tqdm: bool = False, override_bs: int | None = None) -> list[tuple[float, bool]]:
        if override_bs is not None or self.backend != "causal":  # rolling likelihood, and encoder-decoders
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        for texts, _, answer in requests:
            if not 0 < len(answer) <= self.max_length:
                raise BadInput(
                    f"evaluation: the choice {texts[1][:80]!r} has {len(answer)} tokens and the model reads {self.max_length}, so it cannot be scored. "
                    "Measure a model with a longer context, or drop this suite from evals.suites"
                )
        plan = Scored.plan([(prompt, answer) for _, prompt, answer in requests], self.model, self.max_length)
        sizes = [rows.tokens for rows in plan]
        batches = in_turn(sizes, self.batch_size, rows_that_fit(self.model))

        def run(batch: list[int]) -> list[list[Any]]:
            scored = score(self.model, [plan[i] for i in batch])
            self.on_share(sum(len(plan[i].requests) for i in batch) / len(requests))
            return [[list(one) for one in rows] for rows in scored]

        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch, rows in zip(batches, side_by_side(batches, run, self.at_once, self.journal), strict=True):
            for i, row in zip(batch, rows, strict=True):
                for request, (logprob, greedy) in zip(plan[i].requests, row, strict=True):
                    found[request] = (float(logprob), bool(greedy))
        return found

    # ---------------------------------------------------------------- generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text that follows each prompt, up to its first stop string."""
        texts: list[str] = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: repr(requests[i].args[1]))
        for _, group in groupby(order, key=lambda i: repr(requests[i].args[1])):
            places = list(group)
            answer = self._greedy if self._is_greedy(requests[places[0]].args[1]) else super().generate_until
            for i, text in zip(places, answer([requests[i] for i in places]), strict=True):
                texts[i] = text
        return texts

    def _is_greedy(self, options: dict[str, Any]) -> bool:
        """Whether one answer is wanted, the likeliest token at each step, as nearly every suite asks."""
        left = normalize_gen_kwargs(options, self.max_gen_toks)
        sampled = left.pop("do_sample", False) or left.pop("temperature", 0.0)
        plain = all(getattr(self.model.generation_config, name, None) in (None, value) for name, value in PLAIN.items())
        return not sampled and self.backend == "causal" and plain and left.keys() <= {"until", "max_gen_toks", "do_sample", "temperature"}

    def _greedy(self, requests: list[Any]) -> list[str]:
        options = normalize_gen_kwargs(requests[0].args[1], self.max_gen_toks)
        stops = handle_stop_sequences(options["until"], eos=self.tok_decode(self.eot_token_id, skip_special_tokens=False))
        room = options["max_gen_toks"]
        if room >= self.max_length:
            raise BadInput(
                f"evaluation: {requests[0].task_name} asks for answers of {room} tokens, which leaves no room for a prompt in the {self.max_length} "
                f"that the model reads. "
                f"Set evals.max_new_tokens to less than {self.max_length}"
            )
        ids = self._tokenized([request.args[0] for request in requests], getattr(self.tokenizer, "bos_token", None))  # as `tok_batch_encode`
        prompts = [ids[request.args[0]][-(self.max_length - room) :] for request in requests]
        batches = in_turn([len(prompt) + room for prompt in prompts], self.batch_size, rows_that_fit(self.model, room))
        ends = Ends(stops, self.tokenizer)

        def run(batch: list[int]) -> list[str]:
            answers = generate(
                self.model, [prompts[i] for i in batch], stop_ids=self._stop_ids(), pad_id=self.tokenizer.pad_token_id, max_new_tokens=room,
                batch_size=len(batch), has_ended=ends,
            )  # fmt: skip
            self.on_share(len(batch) / len(requests))
            return [postprocess_generated_text(self.tok_decode(answer), stops, None) for answer in answers]

        found: list[str] = [""] * len(requests)
        for batch, texts in zip(batches, side_by_side(batches, run, self.at_once, self.journal), strict=True):
            for i, text in zip(batch, texts, strict=True):
                found[i] = text
        return found

    def _stop_ids(self) -> list[int]:
        """The tokens that end an answer, as transformers' generate has them."""
        end = self.model.generation_config.eos_token_id
        return [] if end is None else [end] if isinstance(end, int) else list(end)


class Ends:
    """Which rows hold a stop string since their newest token; asked after each step."""

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase):
        self.strings = tuple(string for string in strings if string)
        self.tokenizer = tokenizer
        self.tail = (
            max((len(s.encode()) for s in self.strings), default=1) + 4
        )  # a token is a byte at least, so no string is longer; a character is four at most
        last = {string[-1] for string in self.strings}
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        everywhere = any(not c.isascii() or c.isspace() for c in last - {"\n"})  # parts of a character, and spaces that decoding drops: look each time
        self.may_end = torch.tensor([everywhere or any(c in text for c in last) for text in texts])  # (V,) whether a token may be a string's last

    def __call__(self, answers: Tensor) -> Tensor:
        """answers (n, t), newest token last -> (n,) bool."""
        newest = answers[:, -1].cpu()
        looked = self.may_end[newest.clamp(max=len(self.may_end) - 1)]  # (n,)
        if looked.any():
            texts = self.tokenizer.batch_decode(answers[looked.to(answers.device), -self.tail :], skip_special_tokens=True)
            looked[looked.clone()] = torch.tensor([any(s in text for s in self.strings) for text in texts])
        return looked.to(answers.device)
