"""Several processes do what one does: sharing, buffer, head. The processes of torchrun run
distributed_worker."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sld_core.config.scene import HeadConfig
from sld_core.training import train_cell_head
from sld_core.training.distributed import World, joined, shard
from sld_core.types import SldError

ROOT = Path(__file__).resolve().parents[2]


@given(st.integers(0, 500), st.integers(1, 20))
def test_shares_are_even_and_make_up_the_whole_in_order(n, size):
    shares = [shard(n, World(rank, size)) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_joined(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        assert not torch.distributed.is_initialized()


def test_a_gpu_for_all_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused = pytest.raises(SldError, match="--device cuda:0 with torchrun: expected cuda")
    with refused, joined("cuda:0"):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    worker.toy_place(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes have: sums end in the same bits
    yield worker.fill(folder), worker.learn()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[1, 2, 4])
def results(request, folder):
    """What each process under torchrun found."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(request.param),
        str(ROOT / "test" / "distributed_worker.py"),
        str(folder),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        torch.load(folder / f"result{rank}.pt", weights_only=True) for rank in range(request.param)
    ]


def test_what_ranks_exchange(results):
    size = len(results)
    for rank, one in enumerate(results):
        assert (one["rank"], one["size"], one["from_main"]) == (rank, size, {"rank": 0})
        assert (
            one["gathered"].tolist()
            == [0, 10, 11, 20, 21, 22, 30, 31, 32, 33][: size * (size + 1) // 2]
        )
        assert (
            one["empty"].shape == (0, 2)
            and one["booleans"].tolist() == [False, True, False, False][:size]
        )
        assert one["mean"] == (size - 1) / 2
        assert one["in_a_group"], "a single process of torchrun takes the same way as several"


def test_where_rank_0_fails_the_others_end(results):
    assert [one["failed"] for one in results] == ["SldError"] + ["SystemExit"] * (len(results) - 1)


def test_every_rank_has_the_buffer_that_one_process_fills(results, alone):
    buffer, whitening = alone[0]
    assert len(buffer) > 500 and buffer.plain_N.float().mean().item() == pytest.approx(
        1 / 3, abs=0.1
    )
    for one in results:
        assert all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(vars(buffer).values(), one["buffer"], strict=True)
        )
        assert torch.equal(one["whitening"]["matrix"], whitening.matrix)


def test_processes_of_a_pool_fill_the_same(folder, alone):
    buffer, _ = worker.fill(folder, processes=2)
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(vars(buffer).values(), vars(alone[0][0]).values(), strict=True)
    )


def test_ranks_train_the_head_that_one_process_trains(results, alone):
    head, curve = alone[1]
    for one in results:
        assert all(
            torch.equal(a, b)
            for a, b in zip(one["head"].values(), results[0]["head"].values(), strict=True)
        )
        assert (
            [step for step, _ in one["curve"]] == [step for step, _ in curve] == [0, 20, 38]
        )  # stalls at 30, runs down in 9
        assert [loss for _, loss in one["curve"]] == pytest.approx(
            [loss for _, loss in curve], abs=0.02
        )
        for name, weight in head.state_dict().items():
            torch.testing.assert_close(one["head"][name], weight, atol=0.03, rtol=0.05)


def test_an_uncertainty_beyond_its_limits_is_pulled_back():
    """Where it was stuck, whole scenes ended with offsets of 20 px uncertainty."""
    located = torch.tensor([[0.0, 0.0, 6.0], [0.0, 0.0, -9.0]], requires_grad=True)
    train_cell_head.laplace_nll(located, torch.tensor([[0.5, 0.5], [0.5, 0.5]])).backward()
    assert located.grad[0, 2] > 0.5 and located.grad[1, 2] < -0.5


# early stop ---------------------------------------------------------------------------------------


def test_a_stall_by_hand():
    stall = train_cell_head.Stall(2, 0.1)
    over = []
    for loss in (1.0, 0.95, 0.85, 0.8, 0.76):
        stall.add(loss)
        over.append(stall.over)
    assert over == [False, False, False, False, True]
    assert stall.best == 0.85 and stall.over  # 0.8 and 0.76 are less, but not by 0.1


def test_training_ends_early_where_nothing_is_gained():
    patient = replace(worker.TOY, samples=90_000, min_gain=0.03)
    (head, curve), (_, whole) = (
        worker.learn(config=patient),
        worker.learn(config=replace(patient, patience=0)),
    )
    feature, landmark = worker.toy_cells()[:2]
    assert curve[-1][0] < 0.8 * whole[-1][0]
    # 0.92 to 0.98: processors round bfloat16 differently
    assert (head(feature)[0].argmax(1) == landmark).float().mean() > 0.9


def test_held_out_cells_are_runs_spread_over_the_buffer():
    learned, held_out = train_cell_head.split_cells(
        100_000, replace(HeadConfig(), patience=1, held_out_cells=4000)
    )
    assert torch.equal(torch.cat([learned, held_out]).sort().values, torch.arange(100_000))
    assert (
        len(held_out) == 4000
        and (held_out.diff() > 1).sum() == 3
        and held_out.diff().max() > 20_000
    )
    assert len(train_cell_head.split_cells(100_000, HeadConfig())[1]) == 0


def test_a_batch_too_small_to_share_is_refused():
    with pytest.raises(SldError, match="batches of 1 cells cannot be shared among 2 processes"):
        worker.learn(World(0, 2), replace(worker.TOY, batch=1))
