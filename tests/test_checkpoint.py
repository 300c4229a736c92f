"""Checkpoints come back bit for bit, survive a crash between their two files, and say what is wrong when damaged."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch

import molgen
from molgen.checkpoint import load_checkpoint, load_weights, save_checkpoint
from molgen.errors import CheckpointError, InputError


@pytest.fixture
def trained():
    """A layer with optimiser moments after two real steps, as a training loop saves them."""
    torch.manual_seed(3)
    layer = torch.nn.Linear(7, 4)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        layer(torch.randn(5, 7)).square().sum().backward()
        optimiser.step()
    tensors = {f"model.{name}": value for name, value in layer.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    tensors["rng"] = torch.get_rng_state()
    tensors["ema.weight"] = layer.weight.detach().t()  # not contiguous, and shares memory with the weight
    tensors["half"] = layer.weight.detach().bfloat16()
    return tensors


def test_round_trip_is_exact(tmp_path, trained):
    save_checkpoint(tmp_path / "a", trained, {"step": 2, "lr": 1e-2, "best": float("inf"), "name": "small"})
    loaded = load_checkpoint(tmp_path / "a")
    assert loaded.tensors.keys() == trained.keys()
    for name, tensor in trained.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor), name
    assert loaded.config["step"] == 2 and loaded.config["lr"] == 1e-2 and loaded.config["best"] is None
    assert loaded.config["molgen_version"] == molgen.__version__ and loaded.config["format"] == 1
    assert loaded.config["sha256"] == loaded.hash
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors"]


def test_generator_state_resumes_the_stream(tmp_path):
    generator = torch.Generator().manual_seed(11)
    torch.randn(3, generator=generator)
    save_checkpoint(tmp_path, {"rng": generator.get_state()}, {})
    expected = torch.randn(4, generator=generator)
    other = torch.Generator()
    other.set_state(load_checkpoint(tmp_path).tensors["rng"])
    assert torch.equal(torch.randn(4, generator=other), expected)


def test_safetensors_alone_can_read_the_tensors(tmp_path, trained):
    save_checkpoint(tmp_path, trained, {})
    plain = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert torch.equal(plain["model.weight"], trained["model.weight"])


@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, crash_at):
    """Stop before each of the three renames of a second save; what loads is always one whole checkpoint."""
    save_checkpoint(tmp_path, {"x": torch.zeros(3)}, {"step": 1})
    renames, real = [], os.replace

    def replace(source, target, **kwargs):
        renames.append(target)
        if len(renames) == crash_at:
            raise KeyboardInterrupt
        return real(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"x": torch.ones(3)}, {"step": 2})
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path)
    assert loaded.config["step"] == (1 if crash_at < 3 else 2)
    assert torch.equal(loaded.tensors["x"], torch.full((3,), float(loaded.config["step"] - 1)))


def test_missing_folder_and_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint folder(.|\n)*remedy: .*molgen doctor"):
        load_checkpoint(tmp_path / "nowhere")
    save_checkpoint(tmp_path / "a", {"x": torch.ones(2)}, {})
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read \(No such file(.|\n)*remedy: "):
        load_checkpoint(tmp_path / "a")
    save_checkpoint(tmp_path / "a", {"x": torch.ones(2)}, {})
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_checkpoint(tmp_path / "a")


def test_the_folder_of_a_run_is_sent_to_the_weights_in_it(tmp_path):
    for name in ("state", "best"):
        save_checkpoint(tmp_path / name, {"w": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=f"holds some[^$]*give {tmp_path / 'best'}$"):
        load_checkpoint(tmp_path)


def test_truncated(tmp_path, trained):
    save_checkpoint(tmp_path, trained, {})
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    message = rf"model\.safetensors: truncated: {len(whole) // 2} bytes\n  expected: {len(whole)} bytes\n  remedy: "
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_wrong_hash(tmp_path, trained):
    save_checkpoint(tmp_path, trained, {})
    path = tmp_path / "model.safetensors"
    altered = bytearray(path.read_bytes())
    altered[-1] ^= 1
    path.write_bytes(altered)
    digest = json.loads((tmp_path / "config.json").read_text())["sha256"]
    with pytest.raises(CheckpointError, match=rf"wrong hash: SHA-256 (.|\n)*expected: {digest}(.|\n)*remedy: "):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("text", "message"), [
    ('{"format": 99}', r"unknown checkpoint format 99\n  expected: format 1"),
    ("{}", r"unknown checkpoint format None"),
    ("[1]", r"unknown checkpoint format None"),
    ('{"format": 1', r"config\.json: not valid JSON"),
    ("\x00\x00", r"config\.json: not valid JSON"),
])  # fmt: skip
def test_bad_config(tmp_path, text, message):
    save_checkpoint(tmp_path, {"x": torch.ones(1)}, {})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_not_safetensors_though_the_hash_agrees(tmp_path):
    save_checkpoint(tmp_path, {"x": torch.ones(1)}, {})
    from molgen.files import sha256

    junk = b"not tensors"
    (tmp_path / "model.safetensors").write_bytes(junk)
    config = json.loads((tmp_path / "config.json").read_text()) | {"sha256": sha256(junk), "bytes": len(junk)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"not a safetensors file"):
        load_checkpoint(tmp_path)


def test_callables_cannot_enter_a_config(tmp_path):
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        save_checkpoint(tmp_path / "a", {}, {"activation": torch.nn.functional.silu})
    assert not (tmp_path / "a").exists()


def test_unwritable_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write: "):
        save_checkpoint(tmp_path / "file" / "a", {"x": torch.ones(1)}, {})


def test_training_state_is_not_weights(tmp_path):
    """The folder beside the one that was meant: `state` in place of `best`."""
    model = torch.nn.Linear(2, 3)
    about = {"model": "line", "config": {}}
    save_checkpoint(tmp_path / "best", model.state_dict(), about)
    loaded, checkpoint = load_weights(tmp_path / "best", "line", lambda config: torch.nn.Linear(2, 3))
    assert torch.equal(loaded.weight, model.weight) and checkpoint.config["model"] == "line"
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "state", state, {**about, "counters": {"step": 1}})
    with pytest.raises(CheckpointError, match="state of a training run") as caught:
        load_weights(tmp_path / "state", "line", lambda config: torch.nn.Linear(2, 3))
    assert str(tmp_path / "best") in str(caught.value)
    with pytest.raises(CheckpointError, match="1 tensors do not fit the configuration"):
        load_weights(tmp_path / "best", "line", lambda config: torch.nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match="holds a model of kind 'line'"):
        load_weights(tmp_path / "best", "prose", lambda config: torch.nn.Linear(2, 3))


def test_a_path_is_no_shipped_name(tmp_path, monkeypatch):
    """`./prose` and `.` are folders of the user's, whatever molgen ships under such a name."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("prose", torch.nn.Linear(2, 3).state_dict(), {"model": "line", "config": {}})
    loaded, checkpoint = load_weights("./prose", "line", lambda config: torch.nn.Linear(2, 3))
    assert checkpoint.hash == load_checkpoint(tmp_path / "prose").hash and loaded.in_features == 2
    with pytest.raises(CheckpointError, match="'prose'"):  # the shipped one
        load_weights("prose", "line", lambda config: torch.nn.Linear(2, 3))
    with pytest.raises(CheckpointError):
        load_weights(".", "line", lambda config: torch.nn.Linear(2, 3))


def test_what_is_no_checkpoint_says_so(tmp_path):
    save_checkpoint(tmp_path / "a", {"x": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match=f"is a file, no checkpoint(?s:.*)give {tmp_path / 'a'}$"):
        load_checkpoint(tmp_path / "a" / "model.safetensors")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "reactions.npz").write_text("")
    for path, text in (("run", "run: is no checkpoint: it has no model"), ("run/reactions.npz", "is a file, no check")):
        with pytest.raises(CheckpointError, match=text) as refused:
            load_checkpoint(tmp_path / path)
        assert "give such a folder" in str(refused.value)
