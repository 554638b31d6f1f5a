"""How what a user brings is found, and what is known of where it comes from: files, hashes, versions."""

import hashlib
import os
import subprocess
import sys
import zipfile

import pytest
import torch

from nsa_lib.subject.config import ConfigError, Own
from nsa_lib.subject.own.loading import HIDDEN, OURS, load, provenance, reason
from nsa_lib.subject.own.spec import resolved

ATTENTION = """
from torch import nn
from {package}.parts import SCALE

class MyAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.out = nn.Linear(dim, dim)
    def forward(self, x):
        return self.out(x.cumsum(1)) * SCALE

def kernel(q, k, v, block_indices, *, l_sel, scale):
    return q
"""

GROUPS = {"attention": "nsa_lib.attentions", "backend": "nsa_lib.backends", "model": "nsa_lib.models"}


def wheel(folder, package, version="1.2.3", scale=1.0):
    """Make a wheel of a package that offers an attention, a kernel and a model as entry points."""
    path, info = folder / f"{package}-{version}-py3-none-any.whl", f"{package}-{version}.dist-info"
    offered = "".join(f"[{group}]\n{package}_{role} = {package}.attn:MyAttention\n" for role, group in GROUPS.items())
    files = {
        f"{package}/__init__.py": "",
        f"{package}/attn.py": ATTENTION.format(package=package),
        f"{package}/parts.py": f"SCALE = {scale}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": offered,
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a wheel as pip does, into a folder that is on the import path of this test."""

    def install(package, **made):
        place = tmp_path / f"site-{package}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
        subprocess.run([*command, str(place), str(wheel(tmp_path, package, **made))], check=True, capture_output=True)
        monkeypatch.syspath_prepend(place)
        return place

    return install


def test_a_module_of_an_installed_package_is_told_with_its_version_and_all_its_files(installed):
    place = installed("of_module")
    spec = resolved("attention", "of_module.attn:MyAttention", ())
    own = Own(role="attention", spec=spec, sizes={"dim": 8, "heads": 2})
    assert load(own).__name__ == "MyAttention"
    found = provenance(own)
    assert (found["version"], found["files"], found["label"]) == ("1.2.3", 3, "of_module.attn:MyAttention")
    assert found["path"] == str(place / "of_module" / "attn.py")
    assert found["file_sha256"] == hashlib.sha256((place / "of_module" / "attn.py").read_bytes()).hexdigest()


@pytest.mark.parametrize("role", GROUPS)
def test_an_entry_point_is_that_of_its_own_group(installed, role):
    place = installed(f"offers_{role}")
    name = f"offers_{role}_{role}"
    own = Own(role=role, spec=resolved(role, name, ()))
    assert load(own).__name__ == "MyAttention"
    found = provenance(own)
    assert (found["label"], found["version"]) == (name, "1.2.3")
    assert found["path"] == str(place / f"offers_{role}" / "attn.py")
    for other in set(GROUPS) - {role}:
        with pytest.raises(ConfigError, match=f"no entry point of the group {GROUPS[other]}"):
            resolved(other, name, ())


def test_a_changed_part_of_a_package_is_another_identity(installed):
    hashes = set()
    for package, scale in (("first_part", 1.0), ("other_part", 2.0)):
        place = installed(package, scale=scale)
        found = provenance(Own(role="attention", spec=f"{package}.attn:MyAttention"))
        hashes.add(found["sha256"])
        assert found["files"] == 3
        assert (place / package / "parts.py").read_text() == f"SCALE = {scale}\n"
    assert len(hashes) == 2


def test_a_file_is_told_with_the_files_beside_it_that_it_imports(tmp_path):
    (tmp_path / "beside_it.py").write_text("SCALE = 1.0\n")
    (tmp_path / "never_imported.py").write_text("1 / 0\n")
    (tmp_path / "with_another.py").write_text("from beside_it import SCALE\ndef build(dim): return SCALE\n")
    own = Own(role="attention", spec=f"{tmp_path}/with_another.py:build")
    before = provenance(own)
    assert (before["files"], before["version"]) == (2, None)
    (tmp_path / "beside_it.py").write_text("SCALE = 2.0\n")
    after = provenance(own)
    assert after["sha256"] != before["sha256"]
    assert after["file_sha256"] == before["file_sha256"]


def test_the_library_itself_is_no_part_of_a_users_file_in_its_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr("nsa_lib.subject.own.loading.OURS", f"{tmp_path}/the_library/")
    (tmp_path / "the_library").mkdir()
    (tmp_path / "the_library" / "inside_ours.py").write_text("")
    (tmp_path / "in_a_checkout.py").write_text(
        f"import sys\nsys.path.append('{tmp_path}/the_library')\nimport inside_ours\ndef build(): pass\n"
    )
    assert provenance(Own(role="model", spec=f"{tmp_path}/in_a_checkout.py:build"))["files"] == 1


def test_a_folder_whose_name_begins_like_ours_is_the_users():
    assert all(place.endswith(os.sep) for place in HIDDEN if not place.startswith("<"))
    assert not f"{OURS.rstrip(os.sep)}_of_mine/attn.py".startswith(HIDDEN)
    assert f"{OURS}subject/config.py".startswith(HIDDEN)


def test_a_path_is_relative_to_the_first_folder_that_has_it(tmp_path):
    for name in ("notebook", "working"):
        (tmp_path / name).mkdir()
    (tmp_path / "working" / "mine.py").write_text("")
    places = (tmp_path / "notebook", tmp_path / "working")
    assert resolved("model", "mine.py:build", places) == f"{tmp_path}/working/mine.py:build"
    (tmp_path / "notebook" / "mine.py").write_text("")
    assert resolved("model", "mine.py:build", places) == f"{tmp_path}/notebook/mine.py:build"
    assert resolved("model", "../working/mine.py:build", places) == f"{tmp_path}/working/mine.py:build"


@pytest.mark.parametrize("folder", ["my code", "C:", "a:b"])
def test_a_path_may_hold_spaces_and_colons(tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "mine.py").write_text("")
    assert resolved("attention", f"{folder}/mine.py:Mine", (tmp_path,)) == f"{tmp_path}/{folder}/mine.py:Mine"


@pytest.mark.parametrize("spec", ["C:\\code\\mine.py:Mine", "my pkg.mod:Mine", " mine.py:Mine "])
def test_a_path_of_windows_and_stray_spaces_are_refused_in_one_line(tmp_path, spec):
    (tmp_path / "mine.py").write_text("")
    with pytest.raises(ConfigError) as caught:
        resolved("attention", spec, (tmp_path,))
    assert repr(spec) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_file_sets_for_all_of_torch_is_put_back(tmp_path):
    (tmp_path / "sets_all.py").write_text(
        "import torch\ntorch.set_default_dtype(torch.float64)\ntorch.set_default_device('meta')\n"
        "torch.set_grad_enabled(False)\ntorch.use_deterministic_algorithms(True)\ndef build(): pass\n"
    )
    load(Own(role="model", spec=f"{tmp_path}/sets_all.py:build"))
    made = torch.ones(1, requires_grad=True) * 2
    assert (made.dtype, made.device.type, made.requires_grad) == (torch.float32, "cpu", True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_reason_is_one_line_that_can_be_read():
    said = reason(ValueError("first\nsecond \x1b[31m red " + "x" * 5000))
    assert said.startswith("ValueError: first second [31m red xxx")
    assert len(said) < 600
    assert said.isprintable()
