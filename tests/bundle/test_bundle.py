"""A bundle is packed whole, opened only if nothing in it was touched, and leads nowhere else."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.bundle import CANARY, PROFILE, Bundle, check_place, pack, pack_arrays
from opa_trt.errors import BundleCorrupt, BundleError, BundleVersionError
from opa_trt.tree import TORCHSCRIPT

SEGMENT = "segments/tiny.pt"


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a packed manifest as an attacker would: the digest matches again."""
    manifest = path / "manifest.json"
    body = json.loads(manifest.read_text())
    del body["digest"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    manifest.chmod(0o644)
    manifest.write_text(json.dumps({**body, "digest": digest}))


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def entry_of(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- packed and opened --------------------------------------------------------------------------


def test_a_packed_bundle_opens_and_says_what_was_packed(toy: Any, toy_bundle: Path) -> None:
    bundle = Bundle(toy_bundle)
    assert bundle.manifest.nodes == toy.nodes
    assert bundle.manifest.files.keys() == everything(toy_bundle).keys() - {"manifest.json"}
    assert [entry.name for entry in bundle.tree.entries] == ["pioneer"]


def test_a_path_may_be_text(toy_bundle: Path) -> None:
    assert Bundle(str(toy_bundle)).manifest.name == "toy"


def test_a_segment_comes_back_with_its_forms(toy: Any, toy_bundle: Path) -> None:
    assert Bundle(toy_bundle).segment("tiny") == toy.segment("tiny")


def test_arrays_come_back(toy: Any, toy_bundle: Path) -> None:
    arrays = Bundle(toy_bundle).arrays(CANARY)
    assert arrays.keys() == toy.canary.keys()
    for key, values in arrays.items():
        np.testing.assert_array_equal(values, toy.canary[key])


def test_arrays_of_any_stride_can_be_packed(toy: Any, tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4).T
    path = toy.pack(tmp_path / "b", files={"more.safetensors": pack_arrays({"a": values})})
    np.testing.assert_array_equal(Bundle(path).arrays("more.safetensors")["a"], values)


def test_files_are_read_only(toy_bundle: Path) -> None:
    files = [path for path in toy_bundle.rglob("*") if path.is_file()]
    assert len(files) == 13
    assert all(not path.stat().st_mode & 0o222 for path in files)


def test_others_can_read_the_folder(toy_bundle: Path) -> None:
    assert stat.S_IMODE(toy_bundle.stat().st_mode) == 0o755


def test_a_copied_bundle_opens(toy_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_bundle, tmp_path / "copy.opa")
    assert Bundle(tmp_path / "copy.opa").manifest == Bundle(toy_bundle).manifest


def test_a_linked_bundle_opens(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link.opa").symlink_to(toy_bundle)
    assert Bundle(tmp_path / "link.opa").manifest.name == "toy"


def test_pack_returns_the_manifest_as_written(toy: Any, toy_bundle: Path, tmp_path: Path) -> None:
    manifest = Bundle(toy_bundle).manifest
    files = {name: (toy_bundle / name).read_bytes() for name in manifest.files}
    assert pack(tmp_path / "again", manifest, files) == manifest


# --- what is wrong with it ----------------------------------------------------------------------


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Bundle(tmp_path / "nowhere")


def test_a_folder_without_manifest_is_no_bundle(toy_bundle: Path) -> None:
    (toy_bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"has no manifest.json"):
        Bundle(toy_bundle)


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="a bundle folder"):
        Bundle(tmp_path / "file")


@pytest.mark.parametrize("name", [SEGMENT, PROFILE, CANARY])
def test_a_missing_file_is_named(toy_bundle: Path, name: str) -> None:
    (toy_bundle / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        Bundle(toy_bundle)


def test_a_folder_in_place_of_a_file_is_missing(toy_bundle: Path) -> None:
    (toy_bundle / SEGMENT).unlink()
    (toy_bundle / SEGMENT).mkdir()
    with pytest.raises(BundleCorrupt, match="is missing"):
        Bundle(toy_bundle)


@pytest.mark.parametrize("name", [SEGMENT, PROFILE, CANARY])
def test_a_truncated_file_is_named(toy_bundle: Path, name: str) -> None:
    data = (toy_bundle / name).read_bytes()
    overwrite(toy_bundle / name, data[:-1])
    with pytest.raises(BundleCorrupt, match=f"{name} has {len(data) - 1} bytes"):
        Bundle(toy_bundle)


def test_a_longer_file_is_named(toy_bundle: Path) -> None:
    overwrite(toy_bundle / SEGMENT, (toy_bundle / SEGMENT).read_bytes() + b"\0")
    with pytest.raises(BundleCorrupt, match="bytes"):
        Bundle(toy_bundle)


@pytest.mark.parametrize("name", [SEGMENT, PROFILE, CANARY])
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_one_flipped_bit_is_noticed(toy_bundle: Path, name: str, where: float) -> None:
    data = bytearray((toy_bundle / name).read_bytes())
    data[int(where * len(data)) if where > 0 else int(where)] ^= 1
    overwrite(toy_bundle / name, bytes(data))
    with pytest.raises(BundleCorrupt, match=f"{name} was altered"):
        Bundle(toy_bundle)


def test_one_flipped_byte_of_the_manifest_is_noticed(toy_bundle: Path) -> None:
    text = (toy_bundle / "manifest.json").read_text()
    overwrite(toy_bundle / "manifest.json", text.replace('"toy"', '"tay"', 1).encode())
    with pytest.raises(BundleCorrupt, match="its digest does not match"):
        Bundle(toy_bundle)


def test_a_manifest_that_is_no_text_is_corrupt(toy_bundle: Path) -> None:
    overwrite(toy_bundle / "manifest.json", b"\xff\xfe\x00")
    with pytest.raises(BundleCorrupt, match="not JSON"):
        Bundle(toy_bundle)


def test_a_later_format_version_is_told(toy_bundle: Path) -> None:
    rewrite(toy_bundle, lambda body: body.update(format_version=3))
    with pytest.raises(BundleVersionError, match="format version 3"):
        Bundle(toy_bundle)


def test_an_unknown_key_is_refused(toy_bundle: Path) -> None:
    rewrite(toy_bundle, lambda body: body.update(surprise=1))
    with pytest.raises(BundleCorrupt, match="surprise"):
        Bundle(toy_bundle)


@pytest.mark.parametrize("name", [SEGMENT, PROFILE, CANARY])
def test_a_file_that_is_used_must_be_listed(toy_bundle: Path, name: str) -> None:
    rewrite(toy_bundle, lambda body: body["files"].pop(name))
    with pytest.raises(BundleCorrupt, match=f"does not list .*{name}"):
        Bundle(toy_bundle)


def test_an_engine_that_is_not_listed_is_refused(toy: Any, tmp_path: Path) -> None:
    target = {"backend": "null", "version": "1"}
    engine = {"segment": "tiny", "target": target, "key": "k", "file": "engines/none"}
    path = toy.pack(tmp_path / "b")
    rewrite(path, lambda body: body.update(engines=[engine]))
    with pytest.raises(BundleCorrupt, match="engines/none"):
        Bundle(path)


def test_a_node_without_segment_is_refused(toy_bundle: Path) -> None:
    rewrite(toy_bundle, lambda body: body["nodes"][1].update(segment="gone"))
    with pytest.raises(BundleCorrupt, match=r"node tiny of .* names no segment 'gone'"):
        Bundle(toy_bundle)


def test_a_file_that_is_not_listed_cannot_be_read(toy_bundle: Path) -> None:
    (toy_bundle / "notes.txt").write_text("mine")
    with pytest.raises(BundleCorrupt, match=r"lists no file 'notes.txt'"):
        Bundle(toy_bundle).read("notes.txt")


def test_a_file_that_changes_after_opening_is_noticed(toy_bundle: Path) -> None:
    bundle = Bundle(toy_bundle)
    data = bytearray((toy_bundle / SEGMENT).read_bytes())
    data[100] ^= 1
    overwrite(toy_bundle / SEGMENT, bytes(data))
    forms = bundle.segment("tiny").forms
    assert TORCHSCRIPT in forms  # which does not read it
    with pytest.raises(BundleCorrupt, match="was altered"):
        forms[TORCHSCRIPT]
    overwrite(toy_bundle / SEGMENT, bytes(data[:-1]))
    with pytest.raises(BundleCorrupt, match="was altered"):
        forms[TORCHSCRIPT]


def test_arrays_that_are_none_are_corrupt(toy: Any, tmp_path: Path) -> None:
    bundle = Bundle(toy.pack(tmp_path / "b", files={PROFILE: b"not safetensors"}))
    with pytest.raises(BundleCorrupt, match="is not readable"):
        bundle.arrays(PROFILE)


# --- paths that lead out ------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the bundle that a bundle must never read."""
    path = tmp_path / "secret"
    path.write_bytes(b"secret")
    return path


@pytest.mark.parametrize("name", ["../secret", "segments/../../secret", "/etc/hostname", ".."])
def test_a_path_that_leads_out_is_refused(toy_bundle: Path, secret: Path, name: str) -> None:
    entry = entry_of(secret.read_bytes())
    rewrite(toy_bundle, lambda body: body["files"].update({name: entry}))
    with pytest.raises(BundleCorrupt, match="leads out of it"):
        Bundle(toy_bundle)


def test_an_absolute_path_to_a_file_that_is_there_is_refused(
    toy_bundle: Path, secret: Path
) -> None:
    entry = entry_of(secret.read_bytes())
    rewrite(toy_bundle, lambda body: body["files"].update({str(secret): entry}))
    with pytest.raises(BundleCorrupt, match="leads out of it"):
        Bundle(toy_bundle)


def test_a_path_out_and_in_again_is_refused(toy_bundle: Path) -> None:
    entry = entry_of((toy_bundle / PROFILE).read_bytes())
    name = f"../{toy_bundle.name}/{PROFILE}"
    rewrite(toy_bundle, lambda body: body["files"].update({name: entry}))
    with pytest.raises(BundleCorrupt, match="leads out of it"):
        Bundle(toy_bundle)


def test_a_link_that_leads_out_is_refused(toy_bundle: Path, secret: Path) -> None:
    (toy_bundle / "link").symlink_to(secret)
    entry = entry_of(secret.read_bytes())
    rewrite(toy_bundle, lambda body: body["files"].update(link=entry))
    with pytest.raises(BundleCorrupt, match="leads out of it"):
        Bundle(toy_bundle)


def test_a_linked_folder_that_leads_out_is_refused(toy_bundle: Path, secret: Path) -> None:
    (toy_bundle / "folder").symlink_to(secret.parent)
    entry = entry_of(secret.read_bytes())
    rewrite(toy_bundle, lambda body: body["files"].update({"folder/secret": entry}))
    with pytest.raises(BundleCorrupt, match="leads out of it"):
        Bundle(toy_bundle)


def test_links_in_a_circle_are_refused(toy_bundle: Path) -> None:
    (toy_bundle / "a").symlink_to("b")
    (toy_bundle / "b").symlink_to("a")
    rewrite(toy_bundle, lambda body: body["files"].update(a=entry_of(b"")))
    with pytest.raises(BundleCorrupt):
        Bundle(toy_bundle)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "", ".", "a/"])
def test_a_name_that_no_file_can_have_is_refused(toy_bundle: Path, name: str) -> None:
    rewrite(toy_bundle, lambda body: body["files"].update({name: entry_of(b"")}))
    with pytest.raises(BundleCorrupt):
        Bundle(toy_bundle)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\0b", "manifest.json"])
def test_pack_refuses_such_names_as_well(toy: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="files named"):
        toy.pack(tmp_path / "b", files={name: b""})
    assert not any(tmp_path.iterdir())


# --- packing over something ---------------------------------------------------------------------


def test_pack_over_a_file_is_refused(toy: Any, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.write_text("precious")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        toy.pack(place)
    assert place.read_text() == "precious"


def test_pack_over_a_folder_of_something_else_is_refused(toy: Any, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "thesis.txt").write_text("precious")
    with pytest.raises(BundleError, match="exists and is no bundle"):
        toy.pack(place)
    assert everything(tmp_path) == {"place/thesis.txt": b"precious"}


def test_pack_into_an_empty_folder_is_fine(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    check_place(tmp_path / "place")
    assert Bundle(toy.pack(tmp_path / "place")).manifest.name == "toy"


def test_pack_makes_missing_parents(toy: Any, tmp_path: Path) -> None:
    assert Bundle(toy.pack(tmp_path / "a" / "b" / "c.opa")).manifest.name == "toy"


def test_pack_replaces_a_bundle_and_leaves_nothing_of_it(toy: Any, tmp_path: Path) -> None:
    toy.pack(tmp_path / "b", files={"old.bin": b"old"})
    toy.pack(tmp_path / "b", name="new")
    assert Bundle(tmp_path / "b").manifest.name == "new"
    assert not (tmp_path / "b" / "old.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("writes", [0, 1, 5, 7])
def test_packing_that_fails_half_way_leaves_nothing(
    toy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    writes: int,
) -> None:
    write, done = Path.write_bytes, []

    def failing(path: Path, data: bytes) -> int:
        done.append(path)
        if len(done) > writes:
            raise error
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(BundleError if error is OSError else error):
        toy.pack(tmp_path / "b")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills_is_told_with_the_room_it_takes(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BundleError, match="No space left on device") as caught:
        toy.pack(tmp_path / "b")
    assert re.search(r"\d\.\d MB", caught.value.expected)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["write", "first rename", "second rename"])
def test_packing_that_fails_half_way_keeps_the_old_bundle(
    toy: Any,
    toy_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    step: str,
) -> None:
    before, rename, renamed = everything(toy_bundle), Path.rename, []

    def failing(path: Path, target: Path) -> Path:
        renamed.append(path)
        if len(renamed) == (1 if step == "first rename" else 2):
            raise error
        return rename(path, target)

    def no_write(path: Path, data: bytes) -> int:
        raise error

    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(Path, "write_bytes", no_write)
        else:
            patch.setattr(Path, "rename", failing)
        with pytest.raises(BundleError if error is OSError else error):
            toy.pack(toy_bundle, name="new")
    assert everything(toy_bundle.parent) == {f"toy.opa/{k}": v for k, v in before.items()}
    assert Bundle(toy_bundle).manifest.name == "toy"
