"""Files that are whole or not there, results that are made once, and the one hash."""

import errno
import hashlib
import json
import os

import pytest
import torch

from hf_i2i_unlearn.evaluation.features import hash_weights
from hf_i2i_unlearn.storage import content_hash, differences, kept, read_json, read_kept, write_aside, write_json, write_kept


def test_a_file_is_written_to_its_end_or_left_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "new" / "a.json"
    write_json(file, {"x": 1})
    assert read_json(file) == {"x": 1} and read_json(tmp_path / "none.json") == {}

    def half(aside):
        aside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_aside(file, half)
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EDQUOT, "full")))
    with pytest.raises(OSError, match="full"):
        write_json(file, {"x": 2})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EINVAL, "no such thing here")))
    assert read_json(file) == {"x": 1} and [f.name for f in file.parent.iterdir()] == ["a.json"]
    write_json(file, {"x": 3})  # a file system that cannot flush is no fault
    assert read_json(file) == {"x": 3}


def test_kept_is_made_once_for_a_key(tmp_path):
    calls, file = [], tmp_path / "a" / "b.json"

    def make():
        calls.append(1)
        return {"x": len(calls)}

    assert kept(file, {"w": "1"}, make) == {"x": 1} == kept(file, {"w": "1"}, make)
    assert read_kept(file, {"w": "2"}) is None
    assert kept(file, {"w": "2"}, make) == {"x": 2} and len(calls) == 2
    write_kept(file, {"w": "2"}, {"x": 2, "y": 3})  # it grows
    assert kept(file, {"w": "2"}, make) == {"x": 2, "y": 3} and json.loads(file.read_text())["key"] == {"w": "2"}


def test_differences():
    assert differences({"a": 1, "b": None, "c": 2}, {"a": 1, "c": 3, "d": 4}) == ["c", "d"]


def test_the_hash_of_weights_is_the_published_one():
    """Names, shapes, types and bytes in the order of the names: cards and results of earlier versions have it."""
    network = torch.nn.Linear(2, 1)
    network.register_buffer("empty", torch.zeros(0, 3))
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, -2.0]]))
        network.bias.fill_(0.5)
    floats = lambda *values: torch.tensor(values).numpy().tobytes()
    wanted = b"bias (1,) torch.float32" + floats(0.5) + b"empty (0, 3) torch.float32" + b"weight (1, 2) torch.float32"
    assert hash_weights(network) == hashlib.sha256(wanted + floats(1.0, -2.0)).hexdigest()
    assert content_hash(sorted(network.state_dict().items())) == hash_weights(network)


def test_the_hash_tells_contents_apart():
    x = torch.arange(6.0)
    many = [
        [b"ab", b"c"],
        [b"a", b"bc"],
        ["ab", "c"],
        [["ab", "c"]],
        [{"a": 1, "b": [2]}],
        [{"a": 1, "b": 2}],
        [{"a": {"b": 2}}],
        [x],
        [x.reshape(2, 3)],
        [x.half()],
        [("name", x)],
        [{"name": x}, 1],
        [[x, x + 1]],
        [[x, x]],
        [x > 2],
        [(x > 2).to(torch.uint8)],
    ]
    assert len({content_hash(parts) for parts in many}) == len(many)
    assert content_hash([{"a": 1, "b": x}]) == content_hash([{"b": x.clone(), "a": 1}])
