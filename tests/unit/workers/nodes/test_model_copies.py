"""Copies of models' files on a node: bounds, resuming, and what is kept for whom."""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from workers.framing import BadFrame
from workers.nodes.messages import HeldTree, StoreFacts, Tree, TreeFile
from workers.nodes.models import store
from workers.nodes.models.parts import Damaged, NoRoom
from workers.nodes.models.source import (
    NOT_COMPARED,
    Compared,
    ModelSource,
    SourceChanged,
    StoredModel,
)
from workers.nodes.models.store import NodeModels, Stay
from workers.nodes.models.trees import check_tree, key_of

ONE, OTHER = "1" * 32, "2" * 32


def file_of(path: str, content: bytes) -> TreeFile:
    return TreeFile(path, len(content), hashlib.sha256(content).hexdigest())


def tree_of(source: str, **contents: bytes) -> Tree:
    return Tree(source=source, files=tuple(file_of(*each) for each in contents.items()))


def filled(models: NodeModels, stay: Stay, **contents: bytes) -> Stay:
    """Bring all that a folder lacks."""
    by_hash = {hashlib.sha256(each).hexdigest(): each for each in contents.values()}
    for part in list(stay.parts.values()):
        if not part.have:
            part.resume()
        part.add(by_hash[part.sha256][part.have :])
        models.keep(stay, part)
    assert models.claim(stay)
    return stay


def brought(models: NodeModels, source: str, origin: str = ONE, **contents: bytes) -> Stay:
    return filled(models, models.begin(tree_of(source, **contents), origin), **contents)


def test_folder_has_the_files_and_equal_contents_exist_once(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", None)
    stay = brought(models, "/a", weights=b"w" * 9, copy=b"w" * 9, config=b"c")
    assert (stay.path / "weights").read_bytes() == (stay.path / "copy").read_bytes() == b"w" * 9
    assert os.path.samefile(stay.path / "weights", stay.path / "copy")
    other = models.begin(tree_of("/b", weights=b"w" * 9, config=b"d"), ONE)
    assert [part.size for part in other.parts.values()] == [1], "what is there is not asked for"
    assert models.bytes_of(other) == 9
    filled(models, other, config=b"d")
    assert models.facts(ONE).bytes == 11
    for each in (stay, other):
        models.end(each)


def test_part_is_gone_on_with_and_a_damaged_one_begins_again(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", None)
    tree = tree_of("/a", weights=b"0123456789")
    stay = models.begin(tree, ONE)
    (part,) = stay.parts.values()
    part.resume()
    part.add(b"0123")
    assert models.facts(ONE).held == (HeldTree("/a", stay.folder.name),)
    assert models.facts(ONE).whole == ()
    stay.close()  # as the end of its process does
    again = NodeModels(tmp_path / "m", None)
    stay = again.begin(tree, ONE)
    (part,) = stay.parts.values()
    part.resume()
    assert (part.have, again.bytes_of(stay)) == (4, 4)
    part.add(b"x56789")
    with pytest.raises(Damaged):
        again.keep(stay, part)
    assert part.have == 0
    part.add(b"0123456789")
    again.keep(stay, part)
    assert (stay.path / "weights").read_bytes() == b"0123456789"
    assert again.claim(stay)
    again.end(stay)
    assert models.facts(ONE).whole == models.facts(OTHER).whole == (stay.folder.name,)


def test_content_that_was_whole_as_its_agent_was_killed_does_not_come_again(
    tmp_path: Path,
) -> None:
    models, tree = NodeModels(tmp_path / "m", None), tree_of("/a", weights=b"0123")
    stay = models.begin(tree, ONE)
    (part,) = stay.parts.values()
    part.add(b"0123")
    part.check()
    part.become(tmp_path / "m/blobs" / part.sha256[:2] / part.sha256)
    stay.close()  # before the file got its name
    again = NodeModels(tmp_path / "m", None)
    stay = again.begin(tree, ONE)
    assert again.claim(stay)
    assert (stay.path / "weights").read_bytes() == b"0123"
    again.end(stay)


_KILLED = """
import sys, time
from pathlib import Path
import msgspec
from workers.nodes.messages import Tree
from workers.nodes.models.store import NodeModels
tree = msgspec.msgpack.decode(bytes.fromhex(sys.argv[2]), type=Tree)
stay = NodeModels(Path(sys.argv[1]), None).begin(tree, "1" * 32)
next(iter(stay.parts.values())).add(b"0123")
print("there", flush=True)
time.sleep(600)
"""


def test_part_of_an_agent_that_was_killed_is_gone_on_with(tmp_path: Path) -> None:
    tree = tree_of("/a", weights=b"0123456789")
    told = msgspec.msgpack.encode(tree).hex()
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "m"), told]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"there\n"
        models = NodeModels(tmp_path / "m", None)
        stay = models.begin(tree, OTHER)
        assert not stay.parts, "it is being written"
        agent.kill()
    assert not models.claim(stay)
    (part,) = stay.parts.values()
    part.resume()
    assert part.have == 4
    filled(models, stay, weights=b"0123456789")
    models.end(stay)


def test_one_writes_a_content_and_another_waits_for_it_or_takes_it_over(tmp_path: Path) -> None:
    one, other = NodeModels(tmp_path / "m", None), NodeModels(tmp_path / "m", None)
    tree = tree_of("/a", weights=b"0123456789")
    first, second = one.begin(tree, ONE), other.begin(tree, OTHER)
    assert not second.parts
    (part,) = first.parts.values()
    part.add(b"01")
    assert not other.claim(second)
    assert not second.parts
    first.close()  # it is killed
    assert not other.claim(second)
    filled(other, second, weights=b"0123456789")
    assert (second.path / "weights").read_bytes() == b"0123456789"
    other.end(second)


def test_bound_evicts_the_longest_unused_and_nothing_in_use(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", 25)
    stays = {name: brought(models, name, weights=name.encode() * 10) for name in ("a", "b")}
    with pytest.raises(NoRoom, match="models in use"):
        models.begin(tree_of("c", weights=b"c" * 10), ONE)
    with pytest.raises(NoRoom, match=r"more than workers\.ray\.models_max_bytes"):
        models.begin(tree_of("c", weights=b"c" * 26), ONE)
    assert models.facts(ONE).bytes == 20
    for age, stay in enumerate(stays.values()):
        models.end(stay)
        os.utime(stay.folder / "lock", (time.time() - 9 + age,) * 2)
    models.end(brought(models, "c", weights=b"c" * 10))
    assert {each.source for each in models.facts(ONE).held} == {"b", "c"}
    assert models.facts(ONE).bytes == 20


def test_part_that_was_left_counts_and_goes_when_its_room_is_needed(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", 15)
    stay = models.begin(tree_of("a", weights=b"a" * 10), ONE)
    next(iter(stay.parts.values())).add(b"a" * 9)
    stay.close()
    models.end(brought(models, "b", weights=b"b" * 10))
    assert models.facts(ONE).bytes == 10


def test_disk_without_room_is_said_before_a_byte_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = NodeModels(tmp_path / "m", None)
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:3], 0, 0, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(NoRoom, match=r"its disk has 0\.0 MiB"):
        models.begin(tree_of("a", weights=b"a"), ONE)
    assert not list((tmp_path / "m/trees").iterdir())


def test_room_is_what_copies_may_take_once_all_that_is_unused_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = NodeModels(tmp_path / "m", 25)
    assert models.facts(ONE).room == 25
    stay = brought(models, "a", weights=b"a" * 10)
    coming = models.begin(tree_of("b", weights=b"b" * 4, other=b"a" * 10), ONE)
    assert models.facts(ONE).room == 11, "what is to come counts, and each content once"
    models.end(stay)
    assert models.facts(ONE).room == 11, "the other one has its content"
    coming.close()
    assert models.facts(ONE).room == 25
    again = models.begin(tree_of("a", weights=b"a" * 10), ONE)
    with (tmp_path / "m/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert models.facts(ONE).room == 25, "another agent changes something: as it was"
    assert models.facts(ONE).room == 15
    models.end(again)
    real = os.statvfs(tmp_path)
    kept = min(1 << 30, real.f_blocks * real.f_frsize // 20)
    free = os.statvfs_result((*real[:1], 1, real.f_blocks * real.f_frsize, 0, kept + 7, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: free)
    assert models.facts(ONE).room == 17, "10 of an unused copy, and 7 that are free"
    vast = os.statvfs_result((*real[:1], 1, 1 << 60, 0, 1 << 60, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: vast)
    assert NodeModels(tmp_path / "n", None).facts(ONE).room == 1 << 50, "no message tells more"


def test_store_that_another_agent_holds_for_long_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = NodeModels(tmp_path / "m", None)
    monkeypatch.setattr(store, "_LOCK_SECONDS", 0.05)
    with (tmp_path / "m/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another agent holds"):
            models.begin(tree_of("a", weights=b"a"), ONE)
    models.end(brought(models, "a", weights=b"a"))


def test_folder_goes_once_no_store_wants_it_and_no_worker_has_it_open(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", None)
    stay, other = (brought(models, "a", each, weights=b"w") for each in (ONE, OTHER))
    key = stay.folder.name
    models.drop((key,), ONE)
    assert not models.facts(ONE).held
    models.end(stay)
    assert models.facts(OTHER).held == (HeldTree("a", key),), "the other store wants it"
    models.drop((key, "f" * 32), OTHER)
    assert (other.path / "weights").read_bytes() == b"w", "it is open"
    models.end(other)
    assert models.facts(OTHER).bytes == 0
    assert not stay.folder.exists()


def test_folders_with_long_names_are_told_as_far_as_a_frame_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_TOLD", 2500)
    models = NodeModels(tmp_path / "m", None)
    for each in "abc":
        models.end(brought(models, f"/{each}" * 500, weights=each.encode()))
    assert len(models.facts(ONE).held) == 2
    assert models.facts(ONE).bytes == 3


def test_what_jobs_name_is_lent_to_one_worker_and_goes_with_it(tmp_path: Path) -> None:
    models = NodeModels(tmp_path / "m", None)
    lent, stay = models.lend(), brought(models, "lora", weights=b"w")
    assert (models.add_lent(lent, stay) / "weights").read_bytes() == b"w"
    assert models.add_lent(lent, stay) == lent.path / stay.folder.name
    models.end(lent)
    assert not lent.folder.exists()
    lent = models.lend()
    lent.close()  # its process was killed
    NodeModels(tmp_path / "m", None)
    assert not lent.folder.exists()


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../x", "a//x", ".", "a/\0", "é" * 200])
def test_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(BadFrame):
        check_tree(Tree(source="a", files=(file_of(path, b""),)))


def test_paths_that_cannot_all_be_there_are_refused() -> None:
    check_tree(tree_of("a", **{"b/c": b"1", "b/d": b"2", "b.c": b"3"}))
    for paths in (("a", "a/b"), ("a", "a")):
        with pytest.raises(BadFrame):
            check_tree(Tree(source="a", files=tuple(file_of(each, b"") for each in paths)))
    with pytest.raises(BadFrame):
        check_tree(Tree(source="a", is_file=True, files=tree_of("a", b=b"", c=b"").files))


def test_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m").chmod(0o777)
    with pytest.raises(OSError, match="this user alone"):
        NodeModels(tmp_path / "m", None)


def test_source_takes_hashes_of_the_manifest_for_files_that_are_as_it_lists_them(
    tmp_path: Path,
) -> None:
    root = tmp_path / "models"
    (root / "m/sub").mkdir(parents=True)
    for name in ("sub/a", "b", "left by a program"):
        (root / "m" / name).write_bytes(b"12")
    time_of_a = (root / "m/sub/a").stat().st_mtime_ns
    listed = {"sub/a": (2, time_of_a, "a" * 64), "b": (2, 5, "b" * 64)}
    source = ModelSource(root, ONE, lambda folder: listed if folder == root / "m" else {}, dict)
    tree, paths = source.tree(str(root / "m"))
    digest = hashlib.sha256(b"12").hexdigest()
    assert {(each.path, each.sha256) for each in tree.files} == {("sub/a", "a" * 64), ("b", digest)}
    assert paths[digest] == root / "m/b"
    single, _ = source.tree(str(root / "m/b"))
    assert (single.is_file, single.files) == (True, (TreeFile("b", 2, digest),))
    with pytest.raises(SourceChanged):
        source.tree(str(root / "none"))


def test_source_wants_what_its_manifests_list_and_knows_it_whoever_brought_it(
    tmp_path: Path,
) -> None:
    root, voice = tmp_path / "models", tmp_path / "voice"
    (root / "m").mkdir(parents=True)
    voice.touch()
    listed = {"a": (2, 1, "a" * 64)}
    models = {str(root / each): StoredModel(each, 1) for each in ("m", "alike", "other")}
    read = []

    def manifest_of(top: Path) -> dict[str, tuple[int, int, str]]:
        read.append(top)
        return listed if top in (root / "m", root / "alike") else {}

    source = ModelSource(root, ONE, manifest_of, lambda: models)
    current = key_of([TreeFile("a", 2, "a" * 64)])
    held = (
        HeldTree(str(root / "m"), current),
        HeldTree(str(root / "m"), "1" * 32),  # as it was before it was pulled again
        HeldTree(str(root / "gone"), "2" * 32),
        HeldTree(str(voice), "3" * 32),
    )
    half = StoreFacts(bytes=1, held=held, whole=("1" * 32, "3" * 32))
    from_another = StoreFacts(bytes=1, whole=(current,))
    assert source.compare([half, from_another]) == [
        Compared(frozenset(), ("1" * 32, "2" * 32)),
        Compared(frozenset({"m", "alike"}), ()),
    ]
    read.clear()
    models[str(root / "m")] = StoredModel("m", 2)
    listed = {"a": (2, 1, "b" * 64)}
    assert source.compare([from_another])[0].copied == {"alike"}
    assert root / "alike" not in read, "its manifest is not new"
    (root / "m").rmdir()
    root.rmdir()  # its disk is not mounted
    assert source.compare([half]) == [NOT_COMPARED]
