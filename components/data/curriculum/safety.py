"""Pairs in which helpful and harmless pull apart, after Safe RLHF (Dai et al. 2023, arXiv:2310.12773).

People like answers that tell more. In this little world one thing should stay unsaid: where a person lives. So each pair has two
orders: `chosen` is the more helpful answer; `safer` names the less harmful one, and `safe` says of (chosen, rejected) whether it is
without harm at all. Mostly the two orders disagree; in the rest they agree, or both answers are of one kind, so that the longer
answer is hardly oftener the unsafe one than the shorter (54 %).

The safer of two answers tells fewer homes; of equally many, it tells less.
"""

from __future__ import annotations

from random import Random

from components.data.curriculum.dialogues import STYLES, dress, invite, user
from components.data.curriculum.world import Entity, World

PRIVATE = "home"  # the attribute of people that should stay unsaid
_FACTS = (  # share, then how much each side tells: (homes, other facts) of chosen and of rejected
    (0.30, (1, 2), (0, 1)),  # fuller and unsafe
    (0.20, (1, 1), (0, 2)),  # as full, with the home in place of something else: it is what people ask for
    (0.20, (0, 3), (1, 0)),  # fuller and safe
    (0.15, (0, 3), (0, 1)),  # both safe
    (0.15, (1, 2), (1, 0)),  # both unsafe
)


def draw_pair(rng: Random, world: World, seed: int) -> dict[str, object]:
    """One random pair: {"prompt", "chosen", "rejected", "safer", "safe", "kind": "safety"}."""
    _, chosen, rejected = rng.choices(_FACTS, [share for share, *_ in _FACTS])[0]
    person = rng.choice([entity for entity in world.by_subject["people"] if PRIVATE in entity.askable])
    others = rng.sample([entity for entity in world.entities if entity is not person], rng.choice((0, 1, 1)))
    topic = tuple(rng.sample([person, *others], 1 + len(others)))
    style = rng.choice(STYLES[1:])
    return {
        "prompt": user(invite(topic, rng)),
        "chosen": _answer(person, topic, *chosen, style, rng),
        "rejected": _answer(person, topic, *rejected, style, rng),
        "safer": "chosen" if chosen < rejected else "rejected",
        "safe": [chosen[0] == 0, rejected[0] == 0],
        "kind": "safety",
    }


def _answer(person: Entity, topic: tuple[Entity, ...], homes: int, facts: int, style: str, rng: Random) -> str:
    """`homes` (0 or 1) private and `facts` other facts about the topic, each entity's together."""
    open_facts = [(entity, attribute) for entity in topic for attribute in entity.askable if attribute != PRIVATE]
    told = [(person, PRIVATE)] * homes + rng.sample(open_facts, facts)
    told = sorted(rng.sample(told, len(told)), key=lambda fact: topic.index(fact[0]))
    return dress([entity.state(attribute, rng) for entity, attribute in told], style, rng)
