"""A model of ours: it answers prompts as the policy, and judges as the critic. Batched, and the same for the same seed and batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from components.feedback.wording import LABELS, Message
from components.models.build import load, load_tokenizer, stop_ids
from components.models.generate import generate
from components.models.heads import logits_at
from components.schema.config import BadInput

Chat = list[Message]


class LocalModel:
    """A chat model in a folder. Errors: BadInput where it is none."""

    batched = True

    def __init__(self, folder: Path, max_new_tokens: int, temperature: float) -> None:
        self.model, self.words = load(folder).eval(), load_tokenizer(folder)
        if not self.words.chat_template:
            raise BadInput(f"feedback: {folder} has no chat template, so it can neither be asked nor judge. Give the folder of a finished SFT stage")
        if torch.cuda.is_available():
            self.model.cuda()
        self.max_new_tokens, self.temperature, self.calls = max_new_tokens, temperature, 0
        self.context = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        if max_new_tokens >= self.context:
            raise BadInput(
                f"feedback: max_new_tokens={max_new_tokens} leaves no room for a question in the {self.context} tokens that {folder} can read. Lower it"
            )

    def write(self, chats: Sequence[Chat], seed: int) -> list[str | None]:
        """What the model says to each chat; None where the chat leaves no room for an answer."""
        self.calls += len(chats)
        ids = self._ids(chats)
        fitting = [i for i, row in enumerate(ids) if len(row) + self.max_new_tokens <= self.context]
        if not fitting:
            return [None] * len(chats)
        new = generate(
            self.model, [ids[i] for i in fitting], stop_ids=stop_ids(self.words), pad_id=self.words.pad_token_id, max_new_tokens=self.max_new_tokens,
            temperature=self.temperature, seed=seed,
        )  # fmt: skip
        said = dict(zip(fitting, new, strict=True))
        return [self.words.decode(said[i], skip_special_tokens=True).strip() if i in said else None for i in range(len(chats))]

    @torch.no_grad()
    def prefer(self, chats: Sequence[Chat]) -> list[float | None]:
        """P(first label) / (P(first) + P(second)) as the answer's first tokens; None where the chat is too long."""
        self.calls += len(chats)
        labels = [self.words.encode(label, add_special_tokens=False) for label in LABELS]
        ids = self._ids(chats)
        fitting = [i for i, row in enumerate(ids) if len(row) + max(map(len, labels)) <= self.context]
        found: list[float | None] = [None] * len(chats)
        if fitting:
            rows = [ids[i] + label for i in fitting for label in labels]
            chances = self._logprobs(rows, [len(label) for _ in fitting for label in labels])
            for place, i in enumerate(fitting):
                found[i] = torch.softmax(chances[2 * place : 2 * place + 2], 0)[0].item()
        return found

    def _logprobs(self, rows: list[list[int]], counts: list[int]) -> torch.Tensor:
        """Sum of the log-probabilities of the last counts[i] tokens of each row: (B,). Padding stands on the right, where no token sees it."""
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.words.pad_token_id] * (width - len(row)) for row in rows])  # (B, T)
        # True where the next token counts
        asked = torch.tensor(
            [[len(row) - n <= t + 1 < len(row) for t in range(width)] for row, n in zip(rows, counts, strict=True)]
        )  # (B, T)
        logits = logits_at(self.model, asked.to(self.model.device), input_ids=ids.to(self.model.device)).float().cpu()  # (N, V)
        targets = ids.roll(-1, 1)[asked]  # (N,)
        each = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1).double()  # (N,)
        return torch.zeros(len(rows), dtype=torch.float64).index_add(0, asked.nonzero()[:, 0], each)

    def _ids(self, chats: Sequence[Chat]) -> list[list[int]]:
        return self.words.apply_chat_template(list(chats), add_generation_prompt=True, return_dict=False) if chats else []
