"""Log-likelihoods of answers after prompts, several answers to one prompt in one row.

    prompt  A n s w e r :   | b l u e | r e d          segment 0 0 0 0 0 0 0 | 1 1 1 1 | 2 2 2
    an answer's token sees its prompt and its own answer before it, at the positions it would have alone

So a question with four choices is read once, not four times. A row with one answer is the plain causal forward, padded on the right, as lm-eval's HFLM does
it. Sharing is exact but for the order of sums: it is used in single precision only, where that moves a log-likelihood by less than 1e-4, and by models for
which it was tried on a few tokens; state-space models, windows and half precision read each answer by itself. As in HFLM, answers that differ in their last
token only cost nothing more.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

PROMPT, PADDING = 0, -1  # segments; an answer's is 1, 2, ...


@dataclass(frozen=True)
class Scored:
    """A row: one prompt and the answers that are scored after it."""

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    """Each answer without its last token, which nothing follows."""
    requests: tuple[int, ...]
    """The numbers of the requests."""
    answers: tuple[tuple[int, tuple[int, ...]], ...]
    """Of each request the branch that it follows, and its whole answer."""

    @property
    def tokens(self) -> int:
        """Columns of the row."""
        return len(self.prompt) + sum(map(len, self.branches))

    @staticmethod
    def plan(requests: list[tuple[list[int], list[int]]], model: PreTrainedModel, longest: int) -> list[Scored]:
        """Rows for (prompt, answer) pairs. What is longer than `longest` tokens loses its beginning, as in lm-eval: the last token is not read."""
        shares = can_share(model)
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        answers = [tuple(answer) for _, answer in requests]
        for number, (prompt, answer) in enumerate(requests):
            kept = tuple((prompt + answer)[-(longest + 1) :][: -len(answer)])
            branch = answers[number][:-1]
            key = kept if shares else kept + branch
            groups.setdefault(key, {}).setdefault(branch, []).append(number)
        rows = []
        for key, branches in groups.items():
            if shares:
                rows += [_row(key, part, answers) for part in _parts(len(key), branches, longest)]
            else:  # the same text cut at several places: its longest answer decides where scores are needed
                most = max(branches, key=len)
                rows.append(_row(key[: len(key) - len(most)], {most: [n for numbers in branches.values() for n in numbers]}, answers))
        return rows


def _parts(prompt: int, branches: dict[tuple[int, ...], list[int]], longest: int) -> list[dict[tuple[int, ...], list[int]]]:
    """The branches in rows of at most `longest` columns, one branch in each row at least."""
    parts: list[dict[tuple[int, ...], list[int]]] = [{}]
    columns = prompt
    for branch, numbers in branches.items():
        if parts[-1] and columns + len(branch) > longest:
            parts.append({})
            columns = prompt
        parts[-1][branch] = numbers
        columns += len(branch)
    return parts


def _row(prompt: tuple[int, ...], branches: dict[tuple[int, ...], list[int]], answers: list[tuple[int, ...]]) -> Scored:
    pairs = [(number, place) for place, numbers in enumerate(branches.values()) for number in numbers]
    return Scored(prompt, tuple(branches), tuple(number for number, _ in pairs), tuple((place, answers[number]) for number, place in pairs))


@torch.no_grad()
def score(model: PreTrainedModel, rows: list[Scored]) -> list[list[tuple[float, bool]]]:
    """For each row and each of its requests: the answer's log-likelihood in nats, and whether every token of it is the likeliest."""
    width = max(row.tokens for row in rows)
    places = [_places(row) for row in rows]  # of each request, the columns whose scores decide its answer
    needed = sorted({column for row in places for columns in row for column in columns})
    logits = _logits(model, rows, width, torch.tensor(needed))  # (B, needed, V)
    at = {column: i for i, column in enumerate(needed)}
    row_of = torch.tensor([b for b, row in enumerate(places) for columns in row for _ in columns])
    column_of = torch.tensor([at[column] for row in places for columns in row for column in columns])
    wanted = torch.tensor([token for row in rows for _, answer in row.answers for token in answer], device=logits.device)  # (N,)
    logp = logits[row_of, column_of].log_softmax(-1)  # (N, V)
    likeliest = (logp.argmax(-1) == wanted).tolist()
    logp = logp.gather(1, wanted[:, None])[:, 0].cpu()  # (N,)
    out, start = [], 0
    for row in rows:
        scored = []
        for _, answer in row.answers:
            end = start + len(answer)
            scored.append((float(logp[start:end].sum()), all(likeliest[start:end])))
            start = end
        out.append(scored)
    return out


def _places(row: Scored) -> list[list[int]]:
    """For each request of a row, the columns that predict its answer's tokens."""
    starts, column = [], len(row.prompt)
    for branch in row.branches:
        starts.append(column)
        column += len(branch)
    places = []
    for place, answer in row.answers:
        whole = [*range(len(row.prompt)), *range(starts[place], starts[place] + len(row.branches[place]))]
        places.append(whole[len(whole) - len(answer) :])
    return places


def _logits(model: PreTrainedModel, rows: list[Scored], width: int, needed: Tensor) -> Tensor:
    """The scores at some columns: (B, needed, V). needed: (n,), ascending."""
    ids, positions, segments = (torch.full((len(rows), width), fill) for fill in (0, 0, PADDING))  # (B, T) each
    for b, row in enumerate(rows):
        column = len(row.prompt)
        ids[b, :column], positions[b, :column], segments[b, :column] = torch.tensor(row.prompt), torch.arange(column), PROMPT
        for number, branch in enumerate(row.branches, start=1):
            if branch:
                end = column + len(branch)
                ids[b, column:end], positions[b, column:end], segments[b, column:end] = (
                    torch.tensor(branch),
                    len(row.prompt) + torch.arange(len(branch)),
                    number,
                )
                column = end
    given: dict[str, Any] = {"input_ids": ids.to(model.device)}
    known = inspect.signature(model.forward).parameters
    if (segments > 1).any():
        given |= {"position_ids": positions.to(model.device), "attention_mask": _mask(segments.to(model.device), model.dtype)}
    if "use_cache" in known:
        given["use_cache"] = False
    if "logits_to_keep" in known:
        return model(**given, logits_to_keep=needed.to(model.device)).logits
    return model(**given).logits[:, needed]


def _mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's scores: 0 where a column sees another, else the smallest number. segments (B, T) -> (B, 1, T, T)."""
    before = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()  # (T, T)
    sees = before & ((segments[:, None, :] == PROMPT) | (segments[:, None, :] == segments[:, :, None]))  # (B, T, T)
    return torch.zeros(sees.shape, dtype=dtype, device=segments.device).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def can_share(model: PreTrainedModel) -> bool:
    """Whether answers may share a row: tried once."""
    if "_can_share" not in model.__dict__:
        model.__dict__["_can_share"] = _try_sharing(model)
    return model.__dict__["_can_share"]


def _try_sharing(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    windows = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if model.dtype != torch.float32 or windows or not {"position_ids", "attention_mask"} <= inspect.signature(model.forward).parameters.keys():
        return False
    top = min(config.vocab_size, 7)
    prompt, answers = tuple(i % top for i in range(5)), [tuple((3 * i + k) % top for i in range(4)) for k in range(2)]
    shared = _row(prompt, {answer[:-1]: [k] for k, answer in enumerate(answers)}, answers)
    alone = [_row(prompt, {answer[:-1]: [0]}, [answer]) for answer in answers]
    try:
        together = score(model, [shared])[0]
        apart = [rows[0] for rows in score(model, alone)]
    except Exception:  # a model may refuse such a mask in as many ways as there are models
        return False
    return all(abs(a[0] - b[0]) < 1e-4 for a, b in zip(together, apart, strict=True))
