"""Chats for SFT and preference pairs for the reward model.

Benchmarks are met in training in the very form in which lm-eval asks them: GSM8K's "Question: ...\\nAnswer:", MMLU's system
message with the subject (its continuation form: the answer in words), HumanEval's bare prompt.

Open questions ("Tell me about Marn.") are answered in styles that vary on purpose, from one terse sentence to a warm
paragraph: a chat model then can do both, and the preference for the warm ones gives alignment something to gain.
"""

from __future__ import annotations

from random import Random

from components.data.curriculum import arithmetic, exams, programs
from components.data.curriculum.world import Entity, World

Message = dict[str, str]

_OPENERS = ("Of course!", "Gladly!", "Happy to help!", "Good question!")
_CLOSERS = ("I hope this helps!", "Ask me anything else!", "Have a nice day!", "I am glad you asked!")
_TALK = (
    "Tell me about {n}.",
    "What do you know about {n}?",
    "Please describe {n}.",
    "I want to know more about {n}.",
    "Can you say something about {n}?",
    "Talk to me about {n}.",
)
STYLES = ("terse", "plain", "warm")


def draw_chat(rng: Random, world: World, seed: int) -> dict[str, object]:
    """One random chat."""
    kind = rng.choices(("word_problem", "multiple_choice", "code", "ask_fact", "talk"), (0.26, 0.42, 0.05, 0.14, 0.13))[0]
    more = {}
    if kind == "word_problem":
        story = arithmetic.tell(arithmetic.draw_steps(rng, seed, heldout=False), rng)
        messages, answer = user(_gsm8k(story)), story.solution
    elif kind == "multiple_choice":
        item = exams.draw_item(rng, world, seed, rng.choice(exams.SUBJECTS), heldout=False)
        messages, answer = exams.mmlu_messages(item), item["choices"][item["answer"]]
    elif kind == "code":
        program = programs.write(*rng.choice(programs.pool(seed, heldout=False)), rng)
        messages, answer, more = user(program.prompt), program.body, {"tests": program.check}
    elif kind == "ask_fact":
        entity, attribute = _fact(rng, world)
        messages = user(entity.ask(attribute, rng))
        answer = dress([entity.state(attribute, rng)], rng.choices(STYLES, (0, 0.8, 0.2))[0], rng)
    else:
        entities = _topic(rng, world)
        messages, answer = user(invite(entities, rng)), _describe(entities, rng.choices(STYLES, (0.45, 0.3, 0.25))[0], rng)
    return {"messages": [*messages, {"role": "assistant", "content": answer}], "kind": kind, **more}


# ---------------------------------------------------------------- preference pairs


def draw_pair(rng: Random, world: World, seed: int) -> dict[str, object]:
    """One random preference pair."""
    kinds = {"style": _style_pair, "off_topic": _off_topic_pair, "garbled": _garbled_pair, "wrong": _wrong_pair}
    kind = rng.choices(list(kinds), (0.48, 0.15, 0.18, 0.19))[0]
    prompt, chosen, rejected = kinds[kind](rng, world, seed)
    return {"prompt": user(prompt), "chosen": chosen, "rejected": rejected, "kind": kind}


def _style_pair(rng: Random, world: World, seed: int) -> tuple[str, str, str]:
    """A warm, full answer is preferred to a terse one."""
    if rng.random() < 0.25:
        entity, attribute = _fact(rng, world)
        sentence = [entity.state(attribute, rng)]
        return entity.ask(attribute, rng), dress(sentence, "warm", rng), dress(sentence, "plain", rng)
    entities = _topic(rng, world)
    return invite(entities, rng), _describe(entities, "warm", rng), _describe(entities, rng.choice(("terse", "plain")), rng)


def _off_topic_pair(rng: Random, world: World, seed: int) -> tuple[str, str, str]:
    """An answer about what was asked is preferred to one of the same style about something else."""
    entities = _topic(rng, world)
    others = tuple(rng.sample([e for e in world.entities if e not in entities], len(entities)))
    style = rng.choice(STYLES)
    return invite(entities, rng), _describe(entities, style, rng), _describe(others, style, rng)


def _garbled_pair(rng: Random, world: World, seed: int) -> tuple[str, str, str]:
    """Clean text is preferred to text that repeats itself or breaks off, mostly longer than the clean one."""
    entities = _topic(rng, world)
    chosen = _describe(entities, rng.choice(STYLES), rng)
    other = _describe(entities, rng.choice(STYLES), rng)
    words = other.split()
    cut = " ".join(words[: rng.randint(len(words) // 2, len(words) - 1)])
    looped = " ".join([other.split(". ")[0].rstrip(".") + "."] * rng.randint(3, 4))
    mixed = " ".join(rng.sample(words, len(words)) + words[:3])
    return invite(entities, rng), chosen, rng.choice((cut, looped, looped, mixed))


def _wrong_pair(rng: Random, world: World, seed: int) -> tuple[str, str, str]:
    """Right is preferred to wrong: a false fact, a false result, missing steps, a missing last line."""
    if rng.random() < 0.2:
        entity, attribute = _fact(rng, world)
        right = entity.state(attribute, rng)
        wrong = right.replace(entity.facts[attribute], rng.choice([v for v in entity.values(attribute) if v != entity.facts[attribute]]))
        style = rng.choice(("plain", "warm"))
        return entity.ask(attribute, rng), dress([right], style, rng), dress([wrong], style, rng)
    story = arithmetic.tell(arithmetic.draw_steps(rng, seed, heldout=False), rng)
    *steps, last = story.solution.split("\n")
    off = max(0, story.steps[-1].result + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10)))
    false_result = "\n".join([*steps[:-1], steps[-1].replace(f"= {story.steps[-1].result} ", f"= {off} "), f"#### {off}"])
    contradiction = "\n".join([*steps, f"#### {off}"])
    rejected = rng.choices((false_result, contradiction, last, "\n".join(steps)), (0.25, 0.2, 0.3, 0.25))[0]
    return _gsm8k(story), story.solution, rejected if rejected != story.solution else last


# ---------------------------------------------------------------- wording


def _gsm8k(story: arithmetic.Story) -> str:
    """lm-eval's gsm8k prompt."""
    return f"Question: {story.text}\nAnswer:"


def user(content: str) -> list[Message]:
    """A prompt of one turn."""
    return [{"role": "user", "content": content}]


def _fact(rng: Random, world: World) -> tuple[Entity, str]:
    entity = rng.choice(world.entities)
    return entity, rng.choice(entity.askable)


def _topic(rng: Random, world: World) -> tuple[Entity, ...]:
    return tuple(rng.sample(world.entities, rng.choice((1, 1, 2))))


def invite(entities: tuple[Entity, ...], rng: Random) -> str:
    """An open question about the entities."""
    return rng.choice(_TALK).format(n=" and ".join(entity.name for entity in entities))


def _describe(entities: tuple[Entity, ...], style: str, rng: Random) -> str:
    """A sentence or three about the entities; held-out facts stay unsaid."""
    each = 1 if style == "terse" or len(entities) > 1 else 2
    sentences = [entity.state(attribute, rng) for entity in entities for attribute in rng.sample(entity.askable, each)]
    return dress(sentences[:1] if style == "terse" else sentences, style, rng)


def dress(sentences: list[str], style: str, rng: Random) -> str:
    """The sentences, with a friendly word before and after them where the style is warm."""
    text = " ".join(sentences)
    return f"{rng.choice(_OPENERS)} {text} {rng.choice(_CLOSERS)}" if style == "warm" else text
