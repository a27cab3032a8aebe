"""Stores: finished blocks are kept, found again, merged and mended; what is damaged is left out."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from light_work import COMPUTED, Sum, Thirds

import crashsim
from crashsim import CrashsimWarning, FaultSpace, NeuronCrash, Store, monte_carlo
from crashsim.campaign import stored_work
from crashsim.campaign.store import apart
from crashsim.campaign.tasks import Task, fold
from crashsim.errors import ArgumentError, FileError


@pytest.fixture(autouse=True)
def _nothing_computed():
    COMPUTED.clear()


def last(task, blocks, store=None, **options):
    return list(fold(task, range(blocks), store=store, **options))[-1].sums


def files(store):
    return sorted(f.name for f in next(each for each in store.folder.iterdir()).iterdir())


def test_what_is_finished_is_not_computed_again(tmp_path):
    store = Store(tmp_path / "store")
    wanted = last(Thirds(), 10)
    COMPUTED.clear()
    assert last(Thirds(), 4, store) == last(Thirds(), 4)
    COMPUTED.clear()
    assert last(Thirds(), 10, Store(tmp_path / "store")) == wanted
    assert COMPUTED == [4, 5, 6, 7, 8, 9]
    COMPUTED.clear()
    assert last(Thirds(), 10, store) == wanted
    assert COMPUTED == []
    last(Thirds(seed=1), 2, store)
    assert COMPUTED == [0, 1]


def test_work_that_is_interrupted_keeps_what_was_finished(tmp_path):
    store = Store(tmp_path)
    for at in fold(Thirds(), range(100), store=store):
        if at.blocks == 7:
            break
    COMPUTED.clear()
    last(Thirds(), 8, store)
    assert COMPUTED == [7]


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "foreign", "renamed", "compressed"])
def test_what_is_damaged_is_named_and_computed_again(tmp_path, damage):
    store = Store(tmp_path / "store")
    wanted = last(Thirds(), 5, store)
    (folder,) = (tmp_path / "store").iterdir()
    file = folder / [f for f in os.listdir(folder) if f.startswith("blocks")][-1]
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-40])
        case "bit":
            at = content.index(b"data.npy") + 140
            file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        case "empty":
            file.write_bytes(b"")
        case "foreign":
            last(Thirds(seed=1), 5, Store(tmp_path / "other"))
            (other,) = (tmp_path / "other").iterdir()
            file.write_bytes(next(other.glob("blocks*")).read_bytes())
        case "renamed":
            file.rename(folder / "blocks-00000005-00000009.npz")
        case "compressed":
            with np.load(file) as arrays:
                held = dict(arrays)
            np.savez_compressed(file, **held)
    COMPUTED.clear()
    if damage == "renamed":  # sound, but not what its name says
        assert last(Thirds(), 10, store) == last(Thirds(), 10)
        return
    with pytest.warns(CrashsimWarning, match=r"cannot be used .*computed again"):
        assert last(Thirds(), 5, store) == wanted
    assert COMPUTED
    if damage != "foreign":
        return
    store.clean()
    assert (store.status()[0].blocks, store.status()[0].damaged) == (5, ())


def test_status_and_clean_tell_of_damage(tmp_path):
    store = Store(tmp_path)
    last(Thirds(), 3, store)
    last(Thirds(seed=1), 5, store)
    (first, second) = sorted(store.status(), key=lambda status: status.blocks)
    assert (first.blocks, second.blocks) == (3, 5)
    assert first.identity == {"work": "thirds", "seed": "0"}
    assert first.damaged == ()
    told = apart([first, second])
    assert told == [(), ("seed (1; there 0)",)]
    for file in (tmp_path / first.name).glob("*-*.npz"):
        file.write_bytes(b"PK")
    (tmp_path / first.name / "manifest.json").write_text("{}")
    (damaged,) = [status for status in store.status() if status.name == first.name]
    assert any("manifest.json: cannot be used" in why for why in damaged.damaged)
    assert len(damaged.damaged) > 1
    assert damaged.blocks == 0
    assert store.clean() == len(damaged.damaged) - 1


def test_work_ended_before_its_manifest_was_written_is_no_damage(tmp_path):
    begun = tmp_path / "a" / ("0" * 32)
    begun.mkdir(parents=True)
    (begun / ".manifest.json.1f.tmp").write_text("{")
    store = Store(tmp_path / "a")
    assert store.status() == []
    assert Store(tmp_path / "b").merge(store).left_out == ()
    assert store.clean() == 1
    (begun / "blocks-0-0.npz").write_bytes(b"PK")
    (status,) = store.status()
    assert len(status.damaged) == 2  # of what, nobody knows any more


def test_totals_take_the_place_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_work, "_MOST_LOOSE", 6)
    store = Store(tmp_path)
    wanted = last(Thirds(), 21)
    assert last(Thirds(), 21, store) == wanted
    held = files(store)
    assert [name for name in held if name.startswith("total")] == [
        f"total-{count:08d}.npz" for count in (1, 2, 4, 8, 16, 18)
    ]
    assert all(name.split("-")[2] >= "00000018.npz" for name in held if name.startswith("blocks"))
    COMPUTED.clear()
    assert last(Thirds(), 21, store) == wanted
    assert COMPUTED == []
    # A shorter run begins with the total that it holds.
    assert last(Thirds(), 10, store) == last(Thirds(), 10)
    assert store.status()[0].blocks == 21
    # A rule that looks at powers of two finds them.
    seen = [at.blocks for at in fold(Thirds(), range(18), store=store)]
    assert seen == [1, 2, 4, 8, 16, 18]


def test_stores_merge_in_any_order(tmp_path):
    parts = []
    for number, blocks in enumerate(((0, 1, 2), (5, 6), (3, 4, 5), (7,))):
        work = Store(tmp_path / f"part{number}").work(Thirds().identity(), (Sum,))
        for block in blocks:
            work.put(block, Thirds().run(block))
        work.flush()
        parts.append(Store(tmp_path / f"part{number}"))
    last(Thirds(seed=3), 2, parts[1])
    wanted = last(Thirds(), 8)
    for number, order in enumerate(((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1))):
        store = Store(tmp_path / f"all{number}")
        for each in order:
            assert store.merge(parts[each]).left_out == ()
            assert store.merge(parts[each]).files == 0  # nothing is taken twice
        COMPUTED.clear()
        assert last(Thirds(), 8, store) == wanted
        assert COMPUTED == []
        assert len(store.status()) == 2


def test_merging_leaves_out_what_is_damaged_and_mends_what_is_here(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for store in (here, there):
        work = store.work(Thirds().identity(), (Sum,))
        for block in (0, 2, 4) if store is here else (0, 2, 4, 6):
            work.put(block, Thirds().run(block))
            work.flush()
    folder = here.status()[0].name
    (here.folder / folder / "blocks-00000002-00000002.npz").write_bytes(b"")
    (there.folder / folder / "blocks-00000006-00000006.npz").write_bytes(b"PK")
    found = here.merge(there)
    assert found.files == 1
    assert len(found.left_out) == 1
    assert "blocks-00000006" in found.left_out[0]
    assert (here.status()[0].blocks, here.status()[0].damaged) == (3, ())
    COMPUTED.clear()
    assert last(Thirds(), 5, here) == last(Thirds(), 5)
    assert COMPUTED[:2] == [1, 3]
    with pytest.raises(FileError, match="no such folder"):
        here.merge(Store(tmp_path / "nowhere"))
    with pytest.raises(ArgumentError, match="this very store"):
        here.merge(Store(tmp_path / "there" / ".." / "here"))


def test_a_total_that_is_missing_makes_the_later_ones_wait(tmp_path):
    store = Store(tmp_path)
    wanted = last(Thirds(), 9, store)
    next(store.folder.glob("*/total-00000002.npz")).unlink()
    seen = [(at.blocks, at.sums) for at in fold(Thirds(), range(9), store=store) if at.is_block]
    assert [blocks for blocks, _ in seen] == list(range(1, 10))
    assert seen[-1][1] == wanted


def test_a_full_disk_loses_no_result(tmp_path, monkeypatch):
    def full(*_):
        raise FileError("store: cannot write there (no space left on device)")

    monkeypatch.setattr(stored_work, "write_files", full)
    with pytest.warns(CrashsimWarning, match=r"no space left.*the run goes on") as told:
        assert last(Thirds(), 5, Store(tmp_path)) == last(Thirds(), 5)
    assert len(told) == 1


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    times = iter([1e9, 5.0, 1e12, -3.0] * 100)
    monkeypatch.setattr(time, "time", lambda: next(times))
    last(Thirds(), 6, Store(tmp_path))
    COMPUTED.clear()
    last(Thirds(), 6, Store(tmp_path))
    assert COMPUTED == []


def test_bad_stores_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="is a file"):
        Store(tmp_path / "file")
    with pytest.raises(ArgumentError, match="store=5"):
        monte_carlo(space(), samples=10, store=5)

    class Mine(Task):
        def run(self, block):
            return 1

    with pytest.raises(ArgumentError, match="does not say what its sums depend on"):
        last(Mine(), 2, Store(tmp_path / "s"))
    with pytest.raises(ArgumentError, match="begins with block 0"):
        list(fold(Thirds(), [3, 1], store=Store(tmp_path / "s")))


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3)
        ).eval()


def space(p=0.1):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    return FaultSpace(net(), x, NeuronCrash(p=p))


def test_monte_carlo_resumes_and_adds_samples(tmp_path):
    plain = monte_carlo(space(), samples=5000)
    for fewer in (500, 3500):  # the last block of each is cut
        assert monte_carlo(space(), samples=fewer, store=tmp_path).samples == fewer
    run = monte_carlo(space(), samples=5000, store=tmp_path)
    assert run.estimates == plain.estimates
    assert np.array_equal(run.kept, plain.kept)
    (status,) = Store(tmp_path).status()
    assert status.blocks == 4  # the fifth is cut, and so another in a longer run
    seen = []
    monte_carlo(space(), samples=4096, store=tmp_path, progress=lambda *at: seen.append(at))
    assert seen[-1] == (4096, 4096)


def test_a_run_that_stops_by_itself_stops_there_again(tmp_path):
    plain = monte_carlo(space(), rel_width=0.03)
    assert plain.stopped == "relative width"
    assert plain.samples > 1024
    for _ in range(2):
        run = monte_carlo(space(), rel_width=0.03, store=tmp_path)
        assert run.estimates == plain.estimates


def test_score_and_sweep_take_a_store(tmp_path):
    x, y = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)), torch.arange(30) % 3
    given = (net(), (x, y), NeuronCrash(p=0.1))
    scores = [
        crashsim.score(*given, samples=2048, store=store).to_dict()
        for store in (None, tmp_path, tmp_path)
    ]
    for each in scores:
        each.pop("timings")
    assert scores[0] == scores[1] == scores[2]
    works = {status.identity["work"]: status.blocks for status in Store(tmp_path).status()}
    assert set(works) == {"Monte Carlo", "chips, judged on all examples"}
    assert all(works.values())
    curves = [
        crashsim.sweep(*given, rates=[0.02, 0.1], chips=64, store=store).points
        for store in (None, tmp_path, tmp_path)
    ]
    assert curves[0] == curves[1] == curves[2]


PARENT = """
import sys
sys.path.insert(0, {here!r})
from crashsim import Store, Workers
from crashsim.campaign.tasks import fold
from light_work import Thirds

if __name__ == "__main__":
    with Workers(2) as workers:
        for at in fold(Thirds(seconds=0.03), range(60), workers, store=Store({store!r})):
            print(*workers.processes, flush=True)
"""


@pytest.fixture
def parent(tmp_path):
    """A program that computes with two processes, and its store."""
    script, store = tmp_path / "parent.py", tmp_path / "store"
    here = os.path.dirname(__file__)
    script.write_text(textwrap.dedent(PARENT.format(here=here, store=str(store))))
    return [sys.executable, str(script)], Store(store)


def test_nothing_is_lost_or_counted_twice_when_all_is_killed(parent):
    command, store = parent
    random, kept = np.random.default_rng(0), 0
    for _ in range(4):
        until = random.integers(9, 16)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
            for count, line in enumerate(program.stdout):
                if count == 3 and (workers := line.split()):
                    os.kill(int(workers[0]), signal.SIGKILL)
                if count == until:
                    program.kill()
                    break
        (status,) = store.status()
        assert status.damaged == ()
        assert status.blocks >= kept
        kept = status.blocks
    assert kept > 8
    assert last(Thirds(), 60, store) == last(Thirds(), 60)
    assert len(COMPUTED) == 60 + 60 - kept


def test_two_programs_on_one_store_agree(parent):
    command, store = parent
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert last(Thirds(), 60, store) == last(Thirds(), 60)
    assert list(range(60)) == COMPUTED
    assert store.status()[0].damaged == ()
