"""Makes the `.nir` files of this folder, and what the libraries that wrote them count.

Run it where torch, nir, nirtorch, snntorch, spikingjelly, sinabs, norse and rockpool are installed:

    python tests/hardware/data/make_exports.py

For each network NAME it writes NAME.nir, by the library's own exporter, and NAME.npz: `x` (B, ...)
constant inputs, `steps`, `counts` (B, K) spikes of the last layer in the library's own simulation,
and for some `dead` (M, n), masks of the first spiking layer, with `faulty` (M, B, K), the counts
when the library runs with the spikes of those neurons set to 0.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import nir
import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
STEPS, INPUTS, MASKS = 25, 200, 300
warnings.simplefilter("ignore")


def linear(n_in, n_out, scale, bias=True):
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, 0.4 * scale / n_in**0.5, scale / n_in**0.5)
    if bias:
        nn.init.normal_(layer.bias, 0.0, 0.1)
    return layer


def write(name, graph, simulate, shape, dead=None):
    """`simulate(x, alive)` counts the last layer's spikes; `dead` neurons are in the first."""
    x = torch.randint(0, 65, (INPUTS, *shape)) / 64  # packs well
    with torch.no_grad():
        counts = simulate(x, None).numpy()
        kept = {"x": x.numpy().astype("f4"), "steps": STEPS, "counts": counts.astype("u1")}
        if dead is not None:
            masks = np.random.default_rng(0).random((MASKS, dead)) < 0.1
            few = x[:4]
            faulty = []
            for mask in masks:
                faulty.append(simulate(few, torch.from_numpy(~mask).float()).numpy())
            kept |= {"dead": masks, "faulty": np.array(faulty).astype("u1")}
    nir.write(HERE / f"{name}.nir", graph)
    np.savez_compressed(HERE / f"{name}.npz", **kept)
    print(f"{name}: {counts.mean():.2f} spikes an output, {(counts > 0).mean():.0%} fire")


def snntorch():
    import snntorch as snn
    from snntorch.export_nir import export_to_nir

    for reset in ("subtract", "zero"):
        torch.manual_seed(1)
        a, b = linear(16, 20, 0.5), linear(20, 5, 0.8)
        leak = {"reset_mechanism": reset, "init_hidden": True}
        first = snn.Leaky(0.9 * torch.ones(20), threshold=torch.ones(20), **leak)
        last = snn.Leaky(0.8 * torch.ones(5), threshold=torch.ones(5), **leak)
        net = nn.Sequential(a, first, b, last)

        def simulate(x, alive, a=a, b=b, first=first, last=last):
            first.mem, last.mem = torch.zeros(len(x), 20), torch.zeros(len(x), 5)
            total = 0
            for _ in range(STEPS):
                spikes = first(a(x))
                spikes = spikes if alive is None else spikes * alive
                total = total + last(b(spikes))
            return total

        graph = export_to_nir(net, torch.rand(16))
        write(
            f"snntorch_leaky_{reset}", graph, simulate, (16,), 20 if reset == "subtract" else None
        )
    for reset in ("subtract", "zero"):
        torch.manual_seed(2)
        a, b = linear(12, 18, 0.8), linear(18, 5, 1.2)
        more = {"reset_mechanism": reset, "init_hidden": True}
        ones = torch.ones
        first = snn.RSynaptic(
            0.6 * ones(18), 0.8 * ones(18), linear_features=18, threshold=ones(18), **more
        )
        nn.init.normal_(first.recurrent.weight, -0.1, 0.15)
        last = snn.Synaptic(0.4 * ones(5), 0.7 * ones(5), threshold=ones(5), **more)
        net = nn.Sequential(a, first, b, last)

        def recurrent(x, alive, a=a, b=b, first=first, last=last):
            first.spk, first.syn, first.mem = (torch.zeros(len(x), 18) for _ in range(3))
            last.syn, last.mem = torch.zeros(len(x), 5), torch.zeros(len(x), 5)
            total = 0
            for _ in range(STEPS):
                spikes = first(a(x))
                if alive is not None:
                    first.spk = spikes = spikes * alive
                total = total + last(b(spikes))
            return total

        graph = export_to_nir(net, torch.rand(12))
        write(
            f"snntorch_recurrent_{reset}", graph, recurrent, (12,), 18 if reset == "zero" else None
        )

    torch.manual_seed(6)
    a = linear(12, 18, 0.8)
    only = snn.RLeaky(
        0.8 * torch.ones(18), linear_features=18, threshold=torch.ones(18), init_hidden=True,
        reset_mechanism="zero",
    )  # fmt: skip
    nn.init.normal_(only.recurrent.weight, -0.1, 0.15)

    def alone(x, alive):
        only.spk, only.mem = torch.zeros(len(x), 18), torch.zeros(len(x), 18)
        return sum(only(a(x)) for _ in range(STEPS))

    graph = export_to_nir(nn.Sequential(a, only), torch.rand(12))
    write("snntorch_rleaky_zero", graph, alone, (12,))


def spikingjelly():
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    def counted(net, split):
        def simulate(x, alive):
            functional.reset_net(net)
            total = 0
            for _ in range(STEPS):
                spikes = net[:split](x)
                spikes = spikes if alive is None else spikes * alive
                total = total + net[split:](spikes)
            functional.reset_net(net)
            return total

        return simulate

    torch.manual_seed(3)
    net = nn.Sequential(
        linear(16, 20, 1.5), neuron.LIFNode(tau=2.5), linear(20, 5, 2.0), neuron.LIFNode(tau=2.0)
    )
    graph = export_to_nir(net, torch.rand(1, 16))
    write("spikingjelly_lif", graph, counted(net, 2), (16,), 20)
    net = nn.Sequential(
        linear(16, 20, 4.0), neuron.LIFNode(tau=4.0, v_reset=-0.4), linear(20, 5, 6.0),
        neuron.LIFNode(tau=5.0, v_reset=-0.3),
    )  # fmt: skip
    graph = export_to_nir(net, torch.rand(1, 16))
    write("spikingjelly_below", graph, counted(net, 2), (16,))
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), neuron.IFNode(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3),
        neuron.IFNode(), nn.Flatten(), linear(16, 5, 2.0), neuron.IFNode(),
    )  # fmt: skip
    with torch.no_grad():
        net[3].weight.add_(0.05)
    graph = export_to_nir(net, torch.rand(1, 1, 8, 8))
    write("spikingjelly_conv", graph, counted(net, 2), (1, 8, 8))
    net = nn.Sequential(
        linear(16, 20, 0.15), neuron.CUBALIFNode(0.5, 0.75), linear(20, 5, 0.12),
        neuron.CUBALIFNode(0.4, 0.6),
    )  # fmt: skip
    graph = export_to_nir(net, torch.rand(1, 16))
    write("spikingjelly_cuba", graph, counted(net, 2), (16,))


def sinabs():
    import sinabs.layers as sl
    from sinabs.nir import to_nir

    def counted(net):
        def simulate(x, alive):
            for module in net:
                if hasattr(module, "reset_states"):
                    module.reset_states()
            train = x[:, None].expand(-1, STEPS, *x.shape[1:]).flatten(0, 1)
            out = net(train)
            return out.reshape(len(x), STEPS, -1).sum(1)

        return simulate

    for name, bound in (("sinabs", None), ("sinabs-bounded", -1.0)):
        torch.manual_seed(4)
        options = {"batch_size": 1, "min_v_mem": bound}
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), sl.IAFSqueeze(**options), sl.SumPool2d(2),
            nn.Conv2d(4, 4, 3, bias=False), sl.IAFSqueeze(**options), nn.Flatten(),
            linear(16, 5, 3.0, bias=False), sl.IAFSqueeze(**options),
        )  # fmt: skip
        with torch.no_grad():
            net[-2].weight.sub_(0.4)  # so that membranes fall far below zero
        graph = to_nir(net, torch.rand(1, 1, 8, 8))
        pictures = iter([(8, 8), (4, 4)])  # the exporter leaves them out, and nir cannot write None
        for node in graph.nodes.values():
            if isinstance(node, nir.Conv2d) and node.input_shape is None:
                node.input_shape = next(pictures)
            elif isinstance(node, nir.Flatten):
                node.input_type = {"input": np.array([4, 2, 2])}
        for module in net:
            if isinstance(module, sl.IAFSqueeze):
                module.batch_size, module.num_timesteps = -1, STEPS
        write(f"{name}_conv", graph, counted(net), (1, 8, 8))
    net = nn.Sequential(
        linear(16, 20, 4.0),
        sl.LIFSqueeze(tau_mem=torch.full((20,), 8.0), spike_threshold=torch.ones(20), batch_size=1),
        linear(20, 5, 4.0),
        sl.LIFSqueeze(tau_mem=torch.full((5,), 5.0), spike_threshold=torch.ones(5), batch_size=1),
    )
    graph = to_nir(net, torch.rand(1, 16))
    for module in net:
        if isinstance(module, sl.LIFSqueeze):
            module.batch_size, module.num_timesteps = -1, STEPS
    write("sinabs_lif", graph, counted(net), (16,))


def norse():
    import norse.torch as nt
    from norse.torch.utils.export_nir import to_nir

    def counted(net):
        def simulate(x, alive):
            state, total = None, 0
            for _ in range(STEPS):
                out, state = net(x, state)
                total = total + out
            return total

        return simulate

    torch.manual_seed(5)

    def box(n, tau, leak=0.0):
        one = torch.ones(n)
        return nt.LIFBoxCell(
            nt.LIFBoxParameters(
                tau_mem_inv=one / tau, v_th=0.3 * one, v_leak=leak * one, v_reset=0 * one
            )
        )

    net = nt.SequentialState(linear(16, 20, 0.8), box(20, 0.01), linear(20, 5, 2.0), box(5, 0.005))
    write("norse_box", to_nir(net, torch.rand(1, 16)), counted(net), (16,))

    net = nt.SequentialState(
        linear(16, 20, 1.0), box(20, 0.02, 0.2), linear(20, 5, 6.0), box(5, 0.01, -0.2)
    )
    write("norse_leak", to_nir(net, torch.rand(1, 16)), counted(net), (16,))

    def current(n):
        one = torch.ones(n)
        return nt.LIFCell(
            nt.LIFParameters(
                tau_syn_inv=one / 0.005, tau_mem_inv=one / 0.01, v_th=0.5 * one,
                v_leak=0 * one, v_reset=0 * one,
            )
        )  # fmt: skip

    net = nt.SequentialState(linear(16, 20, 0.4), current(20), linear(20, 5, 0.6), current(5))
    write("norse_lif", to_nir(net, torch.rand(1, 16)), counted(net), (16,))


def rockpool():
    from rockpool.nn.combinators import Sequential
    from rockpool.nn.modules.torch import LIFNeuronTorch, LIFTorch, LinearTorch
    from rockpool.nn.modules.torch.nir import to_nir

    def counted(net):
        def simulate(x, alive):
            net.reset_state()
            out, _, _ = net(x[:, None].expand(-1, STEPS, -1))
            return out.sum(1)

        return simulate

    def affine(n_in, n_out, scale):
        made = linear(n_in, n_out, scale)
        return LinearTorch(
            (n_in, n_out), weight=made.weight.detach().T.clone(), bias=made.bias.detach(),
            has_bias=True,
        )  # fmt: skip

    torch.manual_seed(7)
    options = {"dt": 1e-3, "noise_std": 0.0, "tau_mem": 0.01}
    net = Sequential(
        affine(16, 20, 0.4), LIFNeuronTorch(20, **options),
        affine(20, 5, 0.6), LIFNeuronTorch(5, **options),
    )  # fmt: skip
    write("rockpool_lif", to_nir(net, torch.rand(1, 16)), counted(net), (16,))
    options["tau_syn"] = 0.004
    net = Sequential(
        affine(16, 20, 0.15), LIFTorch(20, **options), affine(20, 5, 0.2), LIFTorch(5, **options)
    )
    write("rockpool_synaptic", to_nir(net, torch.rand(1, 16)), counted(net), (16,))


if __name__ == "__main__":
    for make in (snntorch, spikingjelly, sinabs, norse, rockpool):
        if len(sys.argv) == 1 or make.__name__ in sys.argv:
            make()
