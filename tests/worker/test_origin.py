"""What a worker tells of the case that it runs, held against a second reading of the same."""

import hashlib
import platform
from dataclasses import replace

import pytest
import torch

from nsa_lib.contract.origin import MACHINE
from nsa_lib.contract.source import package_sha256
from nsa_lib.worker import origin
from nsa_lib.worker.data import batches, data_sha256
from tests.subject.test_config import CASE


def test_it_is_the_case_source_and_machine_of_this_process():
    found = origin.origin(CASE, "the text")
    assert found["case_sha256"] == hashlib.sha256(b"the text").hexdigest()
    assert (found["package_sha256"], found["host"]) == (package_sha256(), platform.node())
    assert (found["torch"], found["gpu"], found["gpu_uuid"], found["driver"]) == (torch.__version__, None, None, None)
    assert {*MACHINE} <= {*found}


def test_the_data_is_that_of_the_batches():
    assert data_sha256(CASE) == hashlib.sha256(next(batches(CASE)).numpy().tobytes()).hexdigest()
    assert data_sha256(CASE) == data_sha256(replace(CASE, lr=0.5))
    assert data_sha256(CASE) != data_sha256(replace(CASE, seed=1))


def test_of_a_text_it_is_what_the_file_holds_and_not_its_name(tmp_path):
    def of(name, text):
        (tmp_path / name).write_bytes(text)
        return data_sha256(replace(CASE, model=replace(CASE.model, vocab=256), data=str(tmp_path / name)))

    assert of("a", b"x" * 100) == of("b", b"x" * 100) == hashlib.sha256(b"x" * 100).hexdigest()
    assert of("a", b"x" * 99 + b"y") != of("b", b"x" * 100)


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n", "580.159.04"),
        ("something else\n", None),
    ],
)
def test_the_driver_is_read_where_its_module_tells_it(tmp_path, monkeypatch, text, driver):
    monkeypatch.setattr(origin, "DRIVER_FILE", tmp_path / "version")
    assert origin._driver() is None
    (tmp_path / "version").write_text(text)
    assert origin._driver() == driver
