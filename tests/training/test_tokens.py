"""What a step of pretraining sees: shares, caps and order, whatever was asked before and however many processes ask."""

import json
import time

import numpy as np
import pytest
import torch

from components.schema.config import BadInput
from components.training.batches import visits
from components.training.tokens import Mix, Schedule, TokenFile, TokenShards, allot, heldout, places, read_mix, spread_evenly

from .conftest import write_tokens


def allotted(mix: Mix, sizes: np.ndarray, steps: int, batch_size: int) -> np.ndarray:
    return allot(mix, sizes, np.arange(1, steps + 1) * batch_size)


def mix_of(*phases: tuple[float, dict[str, float]], max_epochs: float = 1000.0) -> Mix:
    names = tuple(sorted({name for _, weights in phases for name in weights}))
    rows = np.array([[weights.get(name, 0) / sum(weights.values()) for name in names] for _, weights in phases])
    return Mix(names, tuple(until for until, _ in phases), rows, max_epochs)


def drawn_domains(schedule: Schedule) -> np.ndarray:
    return schedule.at(0, schedule.n)[0]


WEB = {"web": 65, "books": 17, "papers": 8, "code": 7, "reference": 3}


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize("seed", range(40))
def test_after_any_number_of_places_each_domain_is_within_one_of_its_share(seed):
    rng = np.random.default_rng(seed)
    n, domains = int(rng.integers(30, 2000)), int(rng.integers(1, 9))
    counts = rng.multinomial(n, rng.dirichlet(np.full(domains, rng.choice([0.2, 1, 5]))))
    order = spread_evenly(counts)
    given = np.cumsum(order[:, None] == np.arange(domains), axis=0)
    share = np.arange(1, n + 1)[:, None] * counts / n
    assert (given[-1] == counts).all()
    assert np.abs(given - share).max() < 1


def test_every_step_of_every_phase_draws_the_weights():
    mix = mix_of((0.5, WEB), (0.8, {**WEB, "web": 30}), (1.0, {"reference": 1, "papers": 1}))
    schedule = Schedule(mix, np.full(5, 100_000), steps=1000, batch_size=32, seed=1)
    domains = drawn_domains(schedule)
    for start, end, probabilities in zip((0, 500, 800), (500, 800, 1000), mix.probabilities, strict=True):
        phase = domains[start * 32 : end * 32]
        assert np.abs(np.bincount(phase, minlength=5) - probabilities * len(phase)).max() < 1
        per_step = np.stack([np.bincount(batch, minlength=5) for batch in phase.reshape(-1, 32)])
        assert np.abs(per_step - probabilities * 32).max() <= 2  # both ends of a step are within one
    assert {mix.domains[i] for i in np.unique(domains[800 * 32 :])} == {"papers", "reference"}  # the best text last


def test_a_phase_begins_at_its_share_of_the_steps():
    schedule = Schedule(mix_of((0.25, {"a": 1}), (1.0, {"b": 1})), np.array([50, 50]), steps=10, batch_size=2, seed=0)
    assert drawn_domains(schedule).tolist() == [0] * 4 + [1] * 16  # 2.5 steps round to 2


# ---------------------------------------------------------------- the cap


def test_what_a_capped_domain_cannot_give_the_others_give_in_proportion():
    mix = mix_of((1.0, {"a": 50, "b": 30, "c": 20}), max_epochs=4)
    counts = allotted(mix, np.array([50, 10_000, 10_000]), steps=100, batch_size=10)
    assert counts.tolist() == [[200, 480, 320]]  # 50 x 4, and 30 : 20 of the other 800


def test_a_cap_that_binds_others_too_is_met_by_all_of_them():
    mix = mix_of((1.0, {"a": 60, "b": 30, "c": 10}), max_epochs=2)
    assert allotted(mix, np.array([100, 150, 10_000]), steps=100, batch_size=10).tolist() == [[200, 300, 500]]


def test_a_capped_domain_keeps_its_place_in_the_annealing():
    mix = mix_of((0.8, {"web": 85, "reference": 15}), (1.0, {"web": 50, "reference": 50}), max_epochs=1)
    free = allotted(mix, np.array([10**6, 10**6]), steps=1000, batch_size=10)
    capped = allotted(mix, np.array([1100, 10**6]), steps=1000, batch_size=10)  # half of what it would give
    assert free[:, 0].tolist() == [1200, 1000] and capped[:, 0].sum() == 1100
    odds = capped[:, 0] / capped[:, 1]
    assert odds[1] / odds[0] == pytest.approx((50 / 50) / (15 / 85), rel=0.02)  # scaled by one factor in both phases


def test_no_domain_is_visited_more_often_than_the_cap_and_a_share_of_nothing_goes_to_the_others():
    rng = np.random.default_rng(3)
    for _ in range(30):
        sizes = rng.integers(0, 200, 4)
        mix = mix_of((0.3, dict(zip("abcd", rng.integers(1, 50, 4), strict=True))), (1.0, dict(zip("abcd", rng.integers(1, 50, 4), strict=True))), max_epochs=3.5)
        most = np.floor(3.5 * sizes).astype(int)
        steps = int(most.sum() * rng.uniform(0.5, 1)) // 5
        counts = allotted(mix, sizes, steps=steps, batch_size=5)
        assert (counts.sum(axis=0) <= most).all() and counts.sum() == steps * 5
        assert (counts.sum(axis=1) == [round(0.3 * steps) * 5, steps * 5 - round(0.3 * steps) * 5]).all()


def test_training_up_to_the_last_allowed_sequence_works_and_one_more_is_refused():
    mix = mix_of((1.0, {"a": 300, "b": 100}), max_epochs=4)
    assert allotted(mix, np.array([299, 101]), steps=400, batch_size=4).tolist() == [[1196, 404]]
    with pytest.raises(BadInput, match=r"takes 1,601 sequences.*there are a 299, b 101, 1,600 with each repeated up to max_epochs=4 times.*seen 4.0 times.*raise data.mix.max_epochs"):
        allotted(mix, np.array([299, 101]), steps=1601, batch_size=1)


def test_a_phase_that_nothing_can_fill_is_refused():
    mix = mix_of((0.5, {"web": 1}), (1.0, {"reference": 1}), max_epochs=4)
    with pytest.raises(BadInput, match="a phase draws only from domains that have weight in it"):
        allotted(mix, np.array([10, 10_000]), steps=100, batch_size=1)


# ---------------------------------------------------------------- the order of sequences


def test_one_domain_is_visited_in_the_order_of_a_plain_visit():
    schedule = Schedule(mix_of((1.0, {"a": 1})), np.array([37]), steps=50, batch_size=3, seed=9)
    assert schedule.at(0, 150)[1].tolist() == visits(37, 0, 150, seed=9)


def test_each_domain_is_seen_whole_before_any_of_it_is_seen_again():
    sizes = np.array([40, 7, 90])
    schedule = Schedule(mix_of((0.4, {"a": 5, "b": 1, "c": 4}), (1.0, {"a": 1, "b": 1, "c": 8})), sizes, steps=200, batch_size=5, seed=2)
    domains, sequences = schedule.at(0, 1000)
    for domain, size in enumerate(sizes):
        seen = sequences[domains == domain]
        for start in range(0, len(seen) - size + 1, size):
            assert sorted(seen[start : start + size]) == list(range(size))
        assert (seen[:size] != seen[size : 2 * size]).any()  # an order of its own in each pass


def test_batches_are_the_same_in_any_order_and_on_one_or_two_processes():
    mix, sizes = mix_of((0.5, WEB), (1.0, {**WEB, "web": 10})), np.array([90, 30, 500, 20, 800])
    whole = Schedule(mix, sizes, steps=3000, batch_size=5, seed=4)  # more positions than two blocks
    all_at_once = np.stack(whole.at(0, 15_000))
    other = Schedule(mix, sizes, steps=3000, batch_size=5, seed=4)
    for step in np.random.default_rng(0).permutation(3000)[:400].tolist():
        want = all_at_once[:, step * 5 : step * 5 + 5]
        assert (np.stack(other.batch(step)) == want).all()
        halves = [np.stack(other.batch(step, rank, world=2)) for rank in range(2)]
        assert [half.shape[1] for half in halves] == [2, 3] and (np.concatenate(halves, axis=1) == want).all()
    assert (np.stack(Schedule(mix, sizes, steps=3000, batch_size=5, seed=5).at(0, 15_000)) != all_at_once).any()


def test_ten_million_positions_are_laid_out_in_a_second_and_found_in_no_time():
    mix = mix_of((0.8, WEB), (1.0, {**WEB, "reference": 40}))
    spread_evenly(np.array([1, 1]))  # compiled or loaded
    began = time.process_time()
    schedule = Schedule(mix, np.full(5, 10**6), steps=10**5, batch_size=100, seed=0)
    assert time.process_time() - began < 2  # 0.5 s on an idle core
    schedule.batch(99_999)
    began = time.process_time()
    for step in range(50_000, 50_200):
        schedule.batch(step)
    assert time.process_time() - began < 0.5


# ---------------------------------------------------------------- files


def counting(first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)


@pytest.fixture
def three_shards(tmp_path):
    """Ids that tell where they stand: 100... in a-00000, 200... in a-00001, 300... in b-00000; a-00002 is too short for a sequence."""
    shards = {"a-00000": counting(100, 41), "a-00001": counting(200, 25), "a-00002": counting(280, 3), "b-00000": counting(300, 90)}
    return write_tokens(tmp_path, 400, shards, counting(0, 50))


def test_sequences_are_cut_from_each_shard_and_overlap_by_one_token(three_shards):
    files = TokenShards(three_shards, read_mix(three_shards.parent / "mix"), 10, 400)
    assert files.domains == ("a", "b") and files.sizes.tolist() == [4 + 2, 8]
    rows = files.rows(np.array([0, 0, 0, 1]), np.array([3, 4, 5, 7]))
    assert rows[:, 0].tolist() == [130, 200, 210, 370] and (rows[:, 1:] - rows[:, :-1] == 1).all() and rows.shape == (4, 11)
    assert torch.equal(rows[1, -1], rows[2, 0])


def test_places_say_where_the_rows_of_a_step_stand(three_shards):
    mix = three_shards.parent / "mix"
    mixture = read_mix(mix)
    files = TokenShards(three_shards, mixture, 10, 400)
    schedule = Schedule(mixture, files.sizes, 20, 4, seed=3)
    first_of = {"a-00000": 100, "a-00001": 200, "b-00000": 300}
    for step in range(20):
        rows = files.rows(*schedule.batch(step))
        for place, row in zip(places(three_shards, mix, length=10, steps=20, batch_size=4, seed=3, step=step), rows, strict=True):
            assert row.tolist() == list(range(first_of[place["shard"]] + place["start"], first_of[place["shard"]] + place["stop"]))
            assert place["domain"] == place["shard"][0]
    with pytest.raises(BadInput, match="step 20 is not one of this training's, which are 0 to 19"):
        places(three_shards, mix, length=10, steps=20, batch_size=4, seed=3, step=20)


def test_ids_beyond_sixteen_bits_are_read(tmp_path):
    tokens = write_tokens(tmp_path, 200_000, {"a-00000": counting(150_000, 100)}, counting(150_000, 40), dtype="uint32")
    files = TokenShards(tokens, read_mix(tmp_path / "mix"), 10, 200_000)
    assert files.rows(np.array([0]), np.array([1]))[0].tolist() == list(range(150_010, 150_021))
    assert heldout(tokens, 10, 200_000).rows([2])[0, 0] == 150_020


def test_tokens_of_another_tokenizer_are_refused(three_shards):
    mix = read_mix(three_shards.parent / "mix")
    with pytest.raises(BadInput, match="was made with a tokenizer of 400 tokens, and this one has 50: they do not belong together"):
        TokenShards(three_shards, mix, 10, 50)
    with pytest.raises(BadInput, match="holds token 380, and the tokenizer has 350: they do not belong together"):
        TokenFile(three_shards / "train/b-00000.bin", 10, 350).rows([0, 7])


def test_data_shorter_than_a_sequence_and_damaged_data_are_refused(three_shards):
    mix = read_mix(three_shards.parent / "mix")
    with pytest.raises(BadInput, match="does not hold one sequence of 1001 tokens"):
        TokenShards(three_shards, mix, 1000, 400)
    with pytest.raises(BadInput, match=r"heldout.bin does not hold one sequence of 1001 tokens"):
        heldout(three_shards, 1000, 400)
    with (three_shards / "train/a-00001.bin").open("ab") as file:
        file.write(b"xx")
    with pytest.raises(BadInput, match=r"a-00001.bin holds 26 tokens, and tokens.json says 25"):
        TokenShards(three_shards, mix, 10, 400)
    (three_shards / "train/a-00001.bin").unlink()
    with pytest.raises(BadInput, match=r"a-00001.bin does not exist"):
        TokenShards(three_shards, mix, 10, 400)


def test_a_mixture_that_cannot_be_read_is_one_clear_message(tmp_path):
    (tmp_path / "mix.json").write_text(json.dumps({"phases": []}))
    with pytest.raises(BadInput, match=r"mix.json does not say which domain is drawn how often"):
        read_mix(tmp_path)


def test_batches_that_grow_cut_the_same_order_elsewhere_and_phases_end_after_their_share_of_steps():
    mix = mix_of((0.5, {"a": 1, "b": 1}), (1.0, {"b": 1}))
    sizes = np.array([50, 200])
    ramp = Schedule(mix, sizes, steps=4, batch_size=np.array([1, 2, 4, 8]), seed=3)
    assert [len(ramp.batch(step)[0]) for step in range(4)] == [1, 2, 4, 8] and ramp.n == 15
    assert ramp.counts.sum(axis=1).tolist() == [3, 12]  # two of four steps are the first three positions
    joined = np.concatenate([ramp.batch(step)[1] for step in range(4)])
    assert (joined == ramp.at(0, 15)[1]).all()
    parts = [ramp.batch(3, rank, 3) for rank in range(3)]  # eight sequences over three processes
    assert [len(domains) for domains, _ in parts] == [2, 3, 3] and (np.concatenate([rows for _, rows in parts]) == ramp.batch(3)[1]).all()
    same = Schedule(mix, sizes, steps=4, batch_size=np.array([5, 5, 5, 5]), seed=3)
    other = Schedule(mix, sizes, steps=4, batch_size=5, seed=3)
    assert all((same.batch(step)[1] == other.batch(step)[1]).all() for step in range(4))
