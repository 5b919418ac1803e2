"""Outputs of frozen stages on disk: shared by processes, never damaged, and kept only where there is room."""

from types import SimpleNamespace

import pytest
import torch

from emi.finetuning.frozen import FrozenOutputs


def test_several_processes_read_what_each_has_written(tmp_path):
    one, two = FrozenOutputs(tmp_path / "kept"), FrozenOutputs(tmp_path / "kept")
    names = [bytes([i]) * 16 for i in range(4)]
    outputs = [torch.randn(5, 3) for _ in names]
    for i, name in enumerate(names):
        assert one.get(name) is two.get(name) is None
        (one, two)[i % 2].put(name, outputs[i])
        (two, one)[i % 2].put(name, torch.zeros(5, 3))  # is there already
        assert torch.equal(one.get(name), outputs[i])
        assert torch.equal(two.get(name), outputs[i])
    two.remove()  # its disk was full
    assert one.get(names[1]) is None
    with pytest.raises(OSError, match="No such file"):
        one.put(names[1], outputs[1])


@pytest.mark.parametrize("keep", [0, 7, 15, 17, 70])
def test_a_torn_or_damaged_output_is_computed_again(tmp_path, keep):
    kept, name, output = FrozenOutputs(tmp_path), bytes(16), torch.randn(5, 3)
    kept.put(name, output)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert kept.get(name) is None
    kept.put(name, output)
    assert path.read_bytes() == whole
    for damaged in (whole[:keep] + bytes([whole[keep] ^ 128]) + whole[keep + 1 :], bytes(len(whole)), bytes(20)):
        path.write_bytes(damaged)
        assert FrozenOutputs(tmp_path).get(name) is None


def test_the_disk_must_have_room_for_what_is_kept(tmp_path, monkeypatch):
    kept = FrozenOutputs(tmp_path)
    kept.put(bytes(16), torch.randn(5, 3))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=40))
    assert kept.has_room(10, 1)  # 80 bytes are asked for, and some are there
    assert not kept.has_room(100, 1)
