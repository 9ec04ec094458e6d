"""The engine thread: answers as the model alone would give them, whatever shares the batch; who leaves, who waits, who is refused."""

import queue
import threading

import pytest
import torch

from components.models.generate import generate
from components.serving.engine import Answer, Closed, Engine, Full, Sizes
from components.serving.sampling import Sampling
from tests.serving.conftest import until

GREEDY = Sampling(temperature=0)


@pytest.fixture
def make(network):
    """Engines that end with the test; pieces come by answer in `pieces`."""
    made = []

    def engine(rows=4, waiting=64, context=128, **options):
        pieces = queue.Queue()
        found = Engine(*network, Sizes(rows, waiting, context), lambda batch: [pieces.put(one) for one in batch], **options)
        found.pieces = pieces
        made.append(found)
        return found

    yield engine
    for one in made:
        one.close(cancel=True)
        assert one.join(10)


def collected(engine, answers):
    """Tokens and how each ended."""
    tokens, ends = {answer: [] for answer in answers}, {}
    while len(ends) < len(answers):
        answer, piece = engine.pieces.get(timeout=30)
        tokens[answer] += piece.tokens
        if piece.finish:
            ends[answer] = piece.finish
    return [tokens[answer] for answer in answers], [ends[answer] for answer in answers]


def test_answers_are_those_of_the_model_alone_whatever_shares_the_batch(make, network):
    prompts = [[5 + i] * (1 + 3 * i) for i in range(9)]  # more than rows: some join while others are under way
    alone = generate(network[0], prompts, stop_ids=[4, 0], pad_id=0, max_new_tokens=20)
    answers = [Answer(prompt, 20, GREEDY, seed=0) for prompt in prompts]
    engine = make()
    engine.submit(answers)
    tokens, ends = collected(engine, answers)
    assert tokens == alone
    assert ends == ["stop" if row[-1] in (4, 0) else "length" for row in alone]


def test_a_sampled_answer_follows_from_its_seed_and_not_from_its_neighbours(make):
    hot = Sampling(1.5, top_p=0.9)
    engine = make()
    several = [Answer([9, 8], 24, hot, seed=s, ignores_end=True) for s in (1, 2, 1)]
    engine.submit(several)
    tokens, _ = collected(engine, several)
    alone = Answer([9, 8], 24, hot, seed=1, ignores_end=True)
    engine.submit([alone])
    assert tokens[0] == tokens[2] == collected(engine, [alone])[0][0] != tokens[1]


def test_who_goes_away_makes_room(make):
    engine = make(rows=1)
    long, short = Answer([5], 100_000, GREEDY, 0, ignores_end=True), Answer([6], 3, GREEDY, 0, ignores_end=True)
    long.max_tokens = 120
    engine.submit([long])
    until(lambda: engine.rows)
    engine.submit([short])
    engine.cancel([long])
    while engine.pieces.get(timeout=30)[0] is not short:
        pass
    until(lambda: not engine.busy)
    assert long.count < 120


def test_beyond_the_queue_answers_are_refused_whole_and_after_the_end_nothing_is_taken(make):
    engine = make(rows=1, waiting=2)
    gate = threading.Event()
    engine.live.step, step = lambda tokens: gate.wait(20) and step(tokens), engine.live.step
    engine.submit([Answer([5], 4, GREEDY, 0)])
    until(lambda: engine.rows)
    engine.submit([Answer([5], 4, GREEDY, 0), Answer([5], 4, GREEDY, 0)])
    with pytest.raises(Full):
        engine.submit([Answer([5], 4, GREEDY, 0)])
    gate.set()
    engine.close()
    with pytest.raises(Closed):
        engine.submit([Answer([5], 4, GREEDY, 0)])
    assert engine.join(20) and not engine.busy  # what waited was written first


def test_an_engine_whose_step_fails_tells_it_and_goes_on(make):
    engine = make()
    step = engine.live.step
    engine.live.step = lambda tokens: torch.zeros(1)[5]
    broken = Answer([5, 6], 8, GREEDY, 0, ignores_end=True)
    engine.submit([broken])
    assert collected(engine, [broken])[1] == ["error"]
    engine.live.step = step
    fine = Answer([5, 6], 8, GREEDY, 0, ignores_end=True)
    engine.submit([fine])
    assert collected(engine, [fine])[1] == ["length"]


def test_an_engine_for_idle_time_waits_while_others_are_busy(make):
    busy = [True]
    engine = make(others_busy=lambda: busy[0])
    answer = Answer([5], 4, GREEDY, 0, ignores_end=True)
    engine.submit([answer])
    with pytest.raises(queue.Empty):
        engine.pieces.get(timeout=0.1)
    busy[0] = False
    assert collected(engine, [answer])[1] == ["length"]
