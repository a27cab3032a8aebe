"""Hugging Face checkpoints on disk: what transformers computes, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import crashsim
from crashsim import NeuronCrash
from crashsim.errors import FileError
from crashsim.files.models import load_model

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: Any) -> Path:
    """A tiny classifier of texts."""
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    config = transformers.BertConfig(
        vocab_size=23, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


TOKENS = torch.arange(12).reshape(2, 6)


def test_outputs_are_those_of_transformers(folder: Path) -> None:
    model = load_model(f"hf:{folder}").model
    own = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found, wanted = model(input_ids=TOKENS).logits, own(input_ids=TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert wanted.abs().max() > 1e-3
    assert not model.training


def test_it_is_scored_by_its_logits(folder: Path, run: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", input_ids=TOKENS.numpy(), attention_mask=np.ones((2, 6), int))
    code, _, err = run("score", f"hf:{folder}", "--inputs", "d.npz", "--p", 0.01, "--samples", 60,
                       "--methods", "taylor,monte-carlo", "--json", "s.json")  # fmt: skip
    assert code == 0, err
    score = crashsim.Score.load(tmp_path / "s.json")
    model = load_model(f"hf:{folder}").model
    own = crashsim.score(
        model, {"input_ids": TOKENS, "attention_mask": torch.ones(2, 6, dtype=torch.int64)},
        NeuronCrash(p=0.01), sites="hidden", methods=["taylor"], readout="logits",
    )  # fmt: skip
    found, wanted = score.find("taylor", "variance"), own.find("taylor", "variance")
    assert found is not None
    assert wanted is not None
    assert found.value == pytest.approx(wanted.value, rel=1e-6)
    assert found.value > 0


def test_weights_that_do_not_fit_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    name = "classifier.weight"
    save_file({k: v for k, v in state.items() if k != name}, path, {"format": "pt"})
    with pytest.raises(FileError, match=r"1 are missing \(classifier.weight\)"):
        load_model(f"hf:{folder}")
    save_file({**state, name: torch.zeros(5, 8)}, path, {"format": "pt"})
    with pytest.raises(FileError, match=r"1 have other shapes \(classifier.weight\)"):
        load_model(f"hf:{folder}")
    save_file({**state, "more": torch.zeros(2)}, path, {"format": "pt"})
    with pytest.warns(crashsim.CrashsimWarning, match=r"1 weights .* not used \(more\)"):
        load_model(f"hf:{folder}")


def test_code_and_pickles_are_refused(folder: Path) -> None:
    config = folder / "config.json"
    described = json.loads(config.read_text())
    (folder / "own.py").write_text("raise SystemExit('it ran')\n")
    for change in (
        {"auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}, "model_type": "own"},
        {"architectures": ["OwnModel"]},
        {"num_hidden_layers": 10**9},
        {"hidden_size": 2**40},
        {"vocab_size": 2**33},
        {"model_type": 3},
    ):
        config.write_text(json.dumps({**described, **change}))
        with pytest.raises(FileError):
            load_model(f"hf:{folder}")
    config.write_text(json.dumps(described))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileError, match="pickles are not read"):
        load_model(f"hf:{folder}")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileError, match="no safetensors file of the folder"):
        load_model(f"hf:{folder}")
    with pytest.raises(FileError, match="is no folder"):
        load_model(f"hf:{folder}/nowhere")
