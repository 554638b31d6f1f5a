"""Who waits for whom, from what each rank recorded of its collectives."""

from nsa_lib.runs.flights import who_waits


def entry(number, name="nccl:all_reduce", sizes=(64,), group="0", state="scheduled"):
    return {
        "process_group": [group, "pg"], "collective_seq_id": number, "profiling_name": name,
        "input_sizes": [list(sizes)], "input_dtypes": ["Float"], "state": state,
    }  # fmt: skip


def steps(count):
    return [entry(number) for number in range(1, count + 1)]


def test_nothing_is_said_where_all_are_in_the_same_collective_or_nothing_is_known():
    assert who_waits({0: steps(3), 1: steps(3)}) == ""
    assert who_waits({0: steps(3)}) == ""
    assert who_waits({0: [], 1: []}) == ""
    assert who_waits({}) == ""


def test_the_rank_that_did_not_enter_is_named_whichever_it_is():
    for behind in (0, 1, 2):
        flights = {rank: steps(2 if rank == behind else 3) for rank in range(3)}
        said = who_waits(flights)
        assert f"rank {behind} has not entered it, the last that it entered" in said
        assert said.count("has not entered") == 1
        assert "collective 3 of group 0" in said


def test_of_two_ranks_the_one_in_a_group_of_its_own_is_named():
    said = who_waits({0: [*steps(2), entry(1, sizes=(1,), group="1")], 1: steps(3)})
    assert said.startswith("rank 1 is in nccl:all_reduce of [[64]], collective 3 of group 0; rank 0 has not entered it")


def test_of_two_ranks_the_one_that_sends_what_was_never_sent_before_is_named():
    for odd in (0, 1):
        flights = {rank: [*steps(2), entry(3, sizes=(3,) if rank == odd else (64,))] for rank in range(2)}
        said = who_waits(flights)
        assert said.startswith(
            f"rank {odd} entered nccl:all_reduce of [[3]] as collective 3 of group 0, rank {1 - odd}"
        )


def test_of_three_the_odd_one_is_named_though_its_shape_is_an_old_one():
    flights = {rank: [entry(1, sizes=(3,)), entry(2, sizes=(3,) if rank == 2 else (64,))] for rank in range(3)}
    assert who_waits(flights).startswith("rank 2 entered")


def test_on_a_gpu_a_rank_waits_in_the_first_collective_that_is_not_completed():
    done = [entry(1, state="completed"), entry(2, state="completed")]
    alone = [*done, entry(1, sizes=(1,), group="1", state="started"), entry(3)]
    said = who_waits({0: [*done, entry(3, state="started")], 1: alone})
    assert said.startswith("rank 0 is in nccl:all_reduce of [[64]], collective 3 of group 0; rank 1 has not entered it")
    assert "nccl:all_reduce of [[1]], collective 1 of group 1" in said
    assert "rank 1 has not entered it" in who_waits({0: [*done, entry(3)], 1: done})


def test_a_rank_that_never_entered_any_is_named():
    said = who_waits({0: steps(1), 1: []})
    assert (
        said
        == "rank 0 is in nccl:all_reduce of [[64]], collective 1 of group 0; rank 1 has not entered it, nor any other"
    )


def test_a_collective_that_all_are_in_and_that_does_not_end_is_told_where_states_are_known():
    stuck = [entry(1, state="completed"), entry(2, state="started")]
    assert who_waits({0: stuck, 1: stuck}).endswith("collective 2 of group 0, and so are all others; it does not end")
