"""NIR graphs: round trips, and graphs that other libraries wrote."""

from __future__ import annotations

import itertools
import tracemalloc
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from crashsim_hardware import (
    HardwareError,
    HardwareWarning,
    convert,
    nir_graph,
    rate_network,
    read_nir,
    run,
    sample_dead,
    sample_dead_synapses,
    spiking_gap,
    write_nir,
)
from crashsim_hardware.neurons.point_neuron import current_based_lif

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")

ENGINES = ("numpy", "brian2", "brian2-synapses")


@pytest.mark.parametrize("neuron", ["if", "lif"])
def test_round_trip_keeps_every_spike(digits, tmp_path, neuron):
    net = digits("relu")
    chip = convert(net.network, net.train, 50, neuron=neuron)
    write_nir(chip, tmp_path / "chip.nir")
    again = read_nir(tmp_path / "chip.nir", steps=50)
    assert again.physics.dt == chip.physics.dt
    assert again.sizes == chip.sizes
    faults = sample_dead(chip, 0.1, 5, 0)
    ours, theirs = (
        run(c, net.test[:4], faults, engine="numpy", record=True) for c in (chip, again)
    )
    for one, two in zip(ours.counts, theirs.counts, strict=True):
        assert one.any()
        assert np.array_equal(one, two)
    np.testing.assert_allclose(ours.outputs, theirs.outputs, rtol=1e-9, atol=1e-9)


def test_round_trip_of_convolutions(conv, rng, tmp_path):
    x = rng.random((20, 1, 8, 8))
    chip = convert(conv("relu"), x, 40)
    # a layer's bias is one number per channel in NIR
    write_nir(chip, tmp_path / "conv.nir")
    again = read_nir(tmp_path / "conv.nir", steps=40)
    ours, theirs = (run(c, x[:3], engine="numpy", record=True) for c in (chip, again))
    for one, two in zip(ours.counts, theirs.counts, strict=True):
        assert np.array_equal(one, two)


def test_current_based_neurons_round_trip(digits, tmp_path):
    net = digits("relu", (20,))
    chip = convert(net.network, net.train, 60)
    cuba = current_based_lif(0.005, 0.05, 1e-3)
    hidden = tuple(
        replace(layer, neuron=cuba, projection=replace(layer.projection, fraction_bits=None))
        for layer in chip.hidden
    )
    chip = replace(chip, hidden=hidden)
    write_nir(chip, tmp_path / "cuba.nir")
    again = read_nir(tmp_path / "cuba.nir", steps=60)
    ours, theirs = (run(c, net.test[:4], engine="numpy", record=True) for c in (chip, again))
    assert ours.counts[0].any()
    assert np.array_equal(ours.counts[0], theirs.counts[0])


def test_the_rate_network_is_the_converted_one(digits):
    """A chip read back yields a network with the same outputs: the theory can work on it."""
    net = digits("relu")
    chip = read_nir(nir_graph(convert(net.network, net.train, 50)))
    network = rate_network(chip)
    gap = spiking_gap(chip, net.test[:4], sample_dead_synapses(chip, 0.02, 100, 0), engine="numpy")
    assert gap.slope == pytest.approx(1.0, abs=0.03)
    exact = net.network.forward(net.test).outputs
    np.testing.assert_allclose(network.forward(net.test).outputs, exact, atol=0.02)
    spiking = run(replace(chip, steps=2000), net.test[:20], engine="numpy").outputs[0]
    np.testing.assert_allclose(spiking, exact[:20], atol=0.03 * exact.std())


def test_leaky_rate_networks_are_approximate(digits):
    net = digits("relu")
    chip = read_nir(nir_graph(convert(net.network, net.train, 1000, neuron="lif")), steps=1000)
    with pytest.warns(HardwareWarning, match="leaky"):
        network = rate_network(chip)
    exact = network.forward(net.test[:20]).outputs
    spiking = run(chip, net.test[:20], engine="numpy").outputs[0]
    assert np.sqrt(((spiking - exact) ** 2).mean()) < 0.02 * exact.std()


def foreign(nodes, type_check=True):
    """A chain as another library would write it, without our metadata."""
    names = [str(i) for i in range(len(nodes))]
    edges = [*itertools.pairwise(names)]
    return nir.NIRGraph(dict(zip(names, nodes, strict=True)), edges, type_check=type_check)


def lif(n, tau=1e-3, dt=1e-4):
    one = np.ones(n)
    return nir.LIF(tau=tau * one, r=tau / dt * one, v_leak=0 * one, v_threshold=one)


def test_a_foreign_graph_runs_as_its_own_recursion(rng, tmp_path):
    """mem <- beta mem + W s, spike and reset at 1: the loop that such libraries run."""
    weight, second = rng.normal(0.3, 0.4, (6, 3)), rng.normal(0.2, 0.5, (2, 6))
    graph = foreign(
        [
            nir.Input({"input": np.array([3])}),
            nir.Linear(weight),
            lif(6),
            nir.Affine(second, np.array([0.05, -0.1])),
            lif(2, tau=5e-4),
            nir.Output({"output": np.array([2])}),
        ]
    )
    nir.write(str(tmp_path / "foreign.nir"), graph)
    x, steps = np.array([0.5, 0.3, 0.8]), 60
    with pytest.raises(HardwareError, match='reset="zero"'):
        read_nir(tmp_path / "foreign.nir")
    for reset, engine in itertools.product(("zero", "subtract"), ENGINES):
        chip = read_nir(tmp_path / "foreign.nir", steps=steps, reset=reset)
        assert chip.physics.dt == 1e-4
        result = run(chip, x[None], engine=engine, record=True)
        first, last = np.zeros(6), np.zeros(2)  # as libraries start
        counts = np.zeros(6), np.zeros(2)
        for _ in range(steps):
            first = 0.9 * first + weight @ x
            s = (first >= 1 - 2.0**-31).astype(float)
            first = np.where(s > 0, 0.0, first) if reset == "zero" else first - s
            last = 0.8 * last + second @ s + [0.05, -0.1]
            z = (last >= 1 - 2.0**-31).astype(float)
            last = np.where(z > 0, 0.0, last) if reset == "zero" else last - z
            counts[0][:] += s
            counts[1][:] += z
        assert counts[1].any()
        assert np.array_equal(result.counts[0][0, 0], counts[0])
        assert np.array_equal(result.counts[1][0, 0], counts[1])
        np.testing.assert_allclose(result.outputs[0, 0], counts[1] / steps)


def test_a_graph_written_by_snntorch():
    torch = pytest.importorskip("torch")
    snntorch = pytest.importorskip("snntorch")
    export = pytest.importorskip("snntorch.export_nir")
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 5),
        snntorch.Leaky(0.9 * torch.ones(5), torch.ones(5), init_hidden=True),
        torch.nn.Linear(5, 2),
        snntorch.Leaky(0.8 * torch.ones(2), torch.ones(2), init_hidden=True, output=True),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # snntorch calls the old nirtorch
        graph = export.export_to_nir(model, torch.ones(4))
    chip = read_nir(graph, reset="subtract", steps=80)
    assert chip.sizes == (5, 2)
    assert chip.hidden[0].neuron.leak == pytest.approx(0.1)
    np.testing.assert_allclose(
        chip.hidden[0].projection.weight, model[0].weight.detach().numpy(), rtol=1e-6
    )
    counts = run(chip, np.full((1, 4), 2.0), engine="numpy", record=True).counts
    assert counts[0].any()


def test_every_supported_node(rng):
    one = np.ones(4)
    graph = foreign(
        [
            nir.Input({"input": np.array([2, 6, 6])}),
            nir.Conv2d((6, 6), rng.normal(size=(4, 2, 3, 3)), 1, "same", 1, 1, np.full(4, 0.1)),
            nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
            nir.IF(r=np.full((4, 3, 3), 1e4), v_threshold=np.ones((4, 3, 3))),
            nir.SumPool2d(np.array([3, 3]), np.array([3, 3]), np.array([0, 0])),
            nir.Flatten({"input": np.array([4, 1, 1])}, 0),
            nir.Scale(np.full(4, 0.5)),
            nir.Linear(rng.normal(size=(4, 4))),
            nir.CubaLIF(1e-3 * one, 2e-3 * one, 20 * one, 0 * one, one, w_in=10 * one),
            nir.Affine(rng.normal(size=(2, 4)), np.zeros(2)),
            nir.LI(np.full(2, 1e-3), np.ones(2), np.array([0.0, 0.5])),
            nir.Output({"output": np.array([2])}),
        ]
    )
    graph = nir.NIRGraph(graph.nodes, graph.edges, metadata={}, type_check=False)
    chip = read_nir(graph, reset="subtract", steps=30)
    assert chip.sizes == (36, 4)
    x = rng.random((2, 2, 6, 6))
    ours, theirs = (run(chip, x, engine=e, record=True) for e in ("numpy", "brian2"))
    assert ours.counts[0].any()
    assert ours.counts[1].any()
    assert all(map(np.array_equal, ours.counts, theirs.counts))
    np.testing.assert_allclose(chip.readout.bias, [0.0, 0.5])


def test_what_cannot_be_read_or_written_is_named(tiny, conv, rng):
    three = np.array([3])
    io = nir.Input({"input": three}), nir.Output({"output": three})
    with pytest.raises(HardwareError, match="no spiking neurons"):
        read_nir(foreign([io[0], nir.Linear(np.eye(3)), io[1]]), reset="zero")
    reading = nir.LI(np.ones(3), np.ones(3), np.zeros(3))
    with pytest.raises(HardwareError, match="node '1' is a LI, a membrane without spikes"):
        read_nir(foreign([io[0], reading, lif(3), io[1]]), reset="zero")
    looped = nir.NIRGraph(
        {
            "i": io[0],
            "a": nir.Linear(np.eye(3)),
            "w": nir.Linear(np.eye(3)),
            "n": lif(3),
            "o": io[1],
        },
        [("i", "a"), ("a", "w"), ("w", "a"), ("w", "n"), ("n", "o")],
    )
    with pytest.raises(HardwareError, match="is in a loop without neurons"):
        read_nir(looped, reset="zero")
    with pytest.raises(HardwareError, match="sigmoid current-to-frequency"):
        nir_graph(convert(tiny("sigmoid"), rng.normal(size=(5, 5)), 5))
    with pytest.raises(HardwareError, match="refractory"):
        nir_graph(convert(tiny("relu"), rng.normal(size=(50, 5)), 5, refractory=1e-3))
    zero = read_nir(foreign([io[0], lif(3), io[1]]), reset="zero")
    with pytest.raises(HardwareError, match="resets to zero"):
        rate_network(zero)


@pytest.mark.parametrize("path", [None, 3, b"x", "", ["x"]], ids=str)
def test_what_is_no_path_is_not_written_to(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HardwareError, match="path must be"):
        write_nir(None, path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def written(rng, tmp_path):
    """A graph in a file, and ``change(action, name)``: a copy in which the action was taken."""
    graph = foreign(
        [nir.Input({"input": np.array([4])}), nir.Affine(rng.normal(size=(3, 4)), np.zeros(3)),
         lif(3), nir.Output({"output": np.array([3])})]
    )  # fmt: skip
    graph.nodes["1"].metadata = {"made": "here"}
    nir.write(tmp_path / "good.nir", graph)

    def change(action, drop=True):
        path = tmp_path / "changed.nir"
        path.write_bytes((tmp_path / "good.nir").read_bytes())
        with h5py.File(path, "r+") as file:
            if drop:
                del file[WEIGHT]
            action(file)
        return path

    return change


WEIGHT = "node/nodes/1/weight"


def elsewhere(path):
    """Another file with weights in it."""
    with h5py.File(path / "other.h5", "w") as file:
        file["w"] = np.full((3, 4), 42.0)
    (path / "other.bin").write_bytes(np.full((3, 4), 7.0).tobytes())
    return path


def external_link(file, path):
    file[WEIGHT] = h5py.ExternalLink(str(elsewhere(path) / "other.h5"), "/w")


def external_group(file, path):
    elsewhere(path)
    del file["node/nodes/1"]
    file["node/nodes/1"] = h5py.ExternalLink(str(path / "other.h5"), "/")


def raw_storage(file, path):
    where = [(str(elsewhere(path) / "other.bin"), 0, h5py.h5f.UNLIMITED)]
    file["node/nodes/1"].create_dataset("weight", (3, 4), "f8", external=where)


def virtual(file, path):
    layout = h5py.VirtualLayout((3, 4), "f8")
    layout[:] = h5py.VirtualSource(str(elsewhere(path) / "other.h5"), "w", (3, 4))
    file["node/nodes/1"].create_virtual_dataset("weight", layout)


def virtual_within(file, path):
    file["hidden"] = np.ones((3, 4))
    layout = h5py.VirtualLayout((3, 4), "f8")
    layout[:] = h5py.VirtualSource(".", "hidden", (3, 4))
    file["node/nodes/1"].create_virtual_dataset("weight", layout)


def soft_link(file, path):
    file["hidden"], file[WEIGHT] = np.ones((3, 4)), h5py.SoftLink("/hidden")


def dangling_link(file, path):
    file[WEIGHT] = h5py.SoftLink("/nowhere")


def hard_cycle(file, path):
    file[WEIGHT] = np.ones((3, 4))
    file["node/nodes/1/loop"] = file["node"]


def shared_groups(file, path):
    """Each group twice in the one above: 2^20 nodes, were they followed."""
    file[WEIGHT] = np.ones((3, 4))
    group = file.create_group("deep0")
    for level in range(1, 20):
        above = file.create_group(f"deep{level}")
        above["a"] = above["b"] = group
        group = above


def deep(file, path):
    file[WEIGHT] = np.ones((3, 4))
    file.create_group("/".join("g" * 200))


def huge_fill(file, path):
    file["node/nodes/1"].create_dataset("weight", (60000, 60000), "f8", chunks=(100, 100))


def hollow(file, path):
    file["node/nodes/1"].create_dataset("weight", (1000, 1000), "f8")


def partly_hollow(file, path):
    made = file["node/nodes/1"].create_dataset("weight", (1000, 1000), "f8", chunks=(100, 100))
    made[:100] = 1.0


def huge_piece(file, path):
    """Twelve numbers, in one piece of 800 MiB."""
    file["node/nodes/1"].create_dataset(
        "weight", (3, 4), "f8", maxshape=(None, None), chunks=(10240, 10240), compression="gzip"
    )


def lying_piece(file, path):
    """A piece of 96 bytes that unpacks to 16 MiB."""
    made = file["node/nodes/1"].create_dataset("weight", (3, 4), "f8", chunks=(3, 4),
                                               compression="gzip")  # fmt: skip
    made.id.write_direct_chunk((0, 0), zlib.compress(bytes(2**24)))


def short_piece(file, path):
    made = file["node/nodes/1"].create_dataset("weight", (3, 4), "f8", chunks=(3, 4),
                                               compression="gzip")  # fmt: skip
    made.id.write_direct_chunk((0, 0), zlib.compress(bytes(40)))


def scaled(file, path):
    file["node/nodes/1"].create_dataset("weight", data=np.ones((3, 4)), scaleoffset=2)


def references(file, path):
    file[WEIGHT] = np.array([file.ref], dtype=h5py.ref_dtype)


def ragged(file, path):
    made = file["node/nodes/1"].create_dataset("weight", (2,), h5py.vlen_dtype("f8"))
    made[0] = np.ones(3)


def compound(file, path):
    file[WEIGHT] = np.zeros(3, [("a", "f8")])


def opaque(file, path):
    file[WEIGHT] = np.zeros(3, "V8")


def named_type(file, path):
    file[WEIGHT] = np.dtype("f8")


def empty(file, path):
    file[WEIGHT] = h5py.Empty("f8")


def many_texts(file, path):
    file["node/nodes/1"].create_dataset("weight", data=["x"] * 100_001, dtype=h5py.string_dtype())


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (external_link, f"'{WEIGHT}' is a link"),
        (external_group, "'node/nodes/1' is a link"),
        (raw_storage, f"'{WEIGHT}' has its data in another file"),
        (virtual, f"'{WEIGHT}' is virtual"),
        (virtual_within, f"'{WEIGHT}' is virtual"),
        (soft_link, f"'{WEIGHT}' is a link"),
        (dangling_link, f"'{WEIGHT}' is a link"),
        (hard_cycle, "in the file elsewhere too"),
        (shared_groups, "in the file elsewhere too"),
        (deep, "groups more than 32 deep"),
        (huge_fill, f"'{WEIGHT}' of shape \\(60000, 60000\\) would take 109,863 MiB"),
        (hollow, "holds no data"),
        (partly_hollow, "holds 10 of its 100 pieces"),
        (huge_piece, "in pieces of .* would take"),
        (lying_piece, f"'{WEIGHT}': a piece of 16,3.. bytes for 96|does not unpack to 96"),
        (short_piece, "does not unpack to 96"),
        (scaled, "HDF5 filters"),
        (references, "neither numbers nor text"),
        (ragged, "neither numbers nor text"),
        (compound, "neither numbers nor text"),
        (opaque, "neither numbers nor text"),
        (named_type, "neither a group nor a data set"),
        (empty, "holds nothing"),
        (many_texts, "100,001 texts"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_file_is_data_within_itself(written, tmp_path, damage, told):
    path = written(lambda file: damage(file, tmp_path))
    tracemalloc.start()
    with pytest.raises(HardwareError, match=told):
        read_nir(path, reset="zero")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "gzip", "chunks": (2, 3)},
        {"compression": "gzip", "shuffle": True, "fletcher32": True},
        {"compression": "lzf"},
        {"chunks": (1, 1), "maxshape": (None, None)},
        {"dtype": ">f4"},
    ],
    ids=str,
)
def test_what_is_plainly_in_the_file_is_read(written, rng, options):
    weight = rng.normal(size=(3, 4)).astype(np.float32)
    path = written(
        lambda file: file["node/nodes/1"].create_dataset("weight", data=weight, **options)
    )
    chip = read_nir(path, reset="zero")
    np.testing.assert_allclose(chip.hidden[0].projection.weight, weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([nir.Input({"input": np.array([10**12])}), lif(1)], "the Input of shape"),
        ([nir.Input({"input": np.array([-4])}), lif(1)], "at least one of each"),
        (
            [nir.Input({"input": np.array([1, 8, 8])}),
             nir.SumPool2d(np.array([1, 1]), np.array([1, 1]), np.array([10**6, 10**6])), lif(1)],
            "node '1' of shape",
        ),
        (
            [nir.Input({"input": np.array([1, 8, 8])}),
             nir.SumPool2d(np.array([1, 1]), np.array([10**6] * 2), np.array([10**6] * 2)), lif(1)],
            "node '1', with its windows,",
        ),
        (
            [nir.Input({"input": np.array([1, 9999, 9999])}),
             nir.SumPool2d(np.array([5000] * 2), np.array([1, 1]), np.array([0, 0])), lif(1)],
            "node '1', with its windows,",
        ),
    ],
    ids=range(5),
)  # fmt: skip
def test_layers_without_end_are_refused(nodes, told):
    graph = foreign([*nodes, nir.Output({"output": np.array([1])})], type_check=False)
    with pytest.raises(HardwareError, match=told):
        read_nir(graph, reset="zero")


def test_the_limit_is_the_callers(written, rng):
    path = written(lambda file: file.create_dataset(WEIGHT, data=rng.normal(size=(3, 4))))
    with pytest.raises(HardwareError, match=r"more than the .* MiB that a file may"):
        read_nir(path, reset="zero", most_bytes=256)
    assert read_nir(path, reset="zero", most_bytes=4096).sizes == (3,)


def test_graphs_of_another_kind_are_told(written, tmp_path):
    def misnamed(file):
        del file["node/nodes/1/type"]
        file["node/nodes/1/type"] = "Anything"

    with pytest.raises(HardwareError, match="is no NIR graph"):
        read_nir(written(misnamed, drop=False), reset="zero")
    (tmp_path / "no.nir").write_bytes(b"nothing of the kind")
    with pytest.raises(HardwareError, match="no readable HDF5 file"):
        read_nir(tmp_path / "no.nir", reset="zero")
    whole = (tmp_path / "good.nir").read_bytes()
    for length in range(0, len(whole), 997):
        (tmp_path / "cut.nir").write_bytes(whole[:length])
        with pytest.raises(HardwareError):
            read_nir(tmp_path / "cut.nir", reset="zero")
    with pytest.raises(HardwareError, match="is no file"):
        read_nir(tmp_path, reset="zero")
