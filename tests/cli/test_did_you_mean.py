"""A name that is nearly right is answered with the one that was meant."""

import numpy as np
import pytest

SCORE = ("score", "4-5-2:tanh", "--inputs", "d.npz")
HARDWARE = ("hardware", "4-5-2:relu", "--inputs", "d.npz")
NEARLY = [
    ((*SCORE, "--fault", "neuron-crush"), "neuron-crash"),
    ((*SCORE, "--fault", "bit-flip:p=0.1,fromat=float32"), "format"),
    ((*SCORE, "--fault", "weights=bit-flip:p=0.1,format=flaot32"), "float32"),
    ((*SCORE, "--fault", "weights=bit-flip:p=0.1,format=float32,bits=exponnent"), "exponent"),
    ((*SCORE, "--sites", "tanh2"), "tanh1"),
    ((*SCORE, "--sites", "hiden"), "hidden"),
    ((*SCORE, "--metric", "acuracy"), "accuracy"),
    ((*SCORE, "--methods", "tailor"), "taylor"),
    (("score", "4-5-2:tahn", "--inputs", "d.npz"), "tanh"),
    (("score", "4-5-2:tanh", "--inputs", "digts"), "digits"),
    ((*HARDWARE, "--device", "memristor-crosbar"), "memristor-crossbar"),
    ((*HARDWARE, "--chip-fault", "dead-neurons=0.1"), "dead-neuron"),
    (("protect", *SCORE[1:], "--schemes", "secdet"), "secded"),
    (("protect", *SCORE[1:], "--schemes", "tmr:off=words"), "of"),
    (("vulnerability", *SCORE[1:], "--by", "layr,bit"), "layer"),
    (("harden", "4-5-2:tanh", "--data", "d.npz", "--target", 0.9, "--way", "penality"), "penalty"),
    (("devices", "loihi2"), "loihi-2"),
    (("scor", "4-5-2"), "score"),
]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(24, 4)), y=np.arange(24) % 2)


@pytest.mark.parametrize(("line", "meant"), NEARLY, ids=lambda value: str(value)[-30:])
def test_did_you_mean(run, data, line, meant):
    code, _, err = run(*line)
    assert code == 2, err
    assert f"did you mean {meant!r}" in " ".join(err.replace("│", " ").split()).lower()


def test_nothing_is_guessed_where_nothing_is_near(run, data):
    code, _, err = run(*SCORE, "--fault", "meteor")
    assert code == 2
    assert "did you mean" not in err
    assert "neuron-crash" in err
