"""Sweeps of several machines as one table."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from test_equal_drift import two

from talker_rl.evaluation.curves import CurveRow
from talker_rl.records.rows import to_row
from talker_rl.store.shards import parquet_bytes, schema_of, table_of


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("join_sweeps", Path(__file__).parents[1] / "analysis/join_sweeps.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(file: Path, rows: list[CurveRow]) -> Path:
    file.write_bytes(parquet_bytes(table_of([to_row(row) for row in rows], schema_of(CurveRow))))
    return file


def test_parts_give_the_table_of_the_whole(script: ModuleType, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    rows = two()
    whole = write(tmp_path / "whole", rows)
    one = write(tmp_path / "one", [r for r in rows if r.variant in ("base", "dpo")])
    other = write(tmp_path / "other", [r for r in rows if r.variant in ("base", "other")])
    assert script.main([str(whole)]) == 0
    told = capsys.readouterr().out
    assert "at equal drift" in told and "other" in told
    assert script.main([str(other), str(one), str(one)]) == 0  # a file twice is that file once
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(told.splitlines())


def test_what_cannot_be_joined_is_refused(script: ModuleType, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    rows = two()
    whole = write(tmp_path / "whole", rows)
    for who in ("base", "dpo"):
        changed = [replace(r, errors=r.errors + 1) if r.variant == who else r for r in rows]
        assert script.main([str(whole), str(write(tmp_path / who, changed))]) == 1
        told = capsys.readouterr().err
        assert f"{tmp_path / who}" in told and who in told
    assert script.main([str(tmp_path / "none")]) == 1 and "no such file" in capsys.readouterr().err
    for mistake, told in ((["--baseline", "dop"], "no dop in arm biased"), (["--arm", "baised"], "the arm baised")):
        assert script.main([str(whole), *mistake]) == 1 and told in capsys.readouterr().err


def test_what_the_tables_leave_out_is_told(script: ModuleType, tmp_path: Path,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(r, kl=None) if r.variant == "other" else r for r in two()]
    assert script.main([str(write(tmp_path / "whole", rows))]) == 0
    assert "other, seed 0, is left out: its KL is not known" in capsys.readouterr().out
