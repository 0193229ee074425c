"""`datamodels fetch` against moto's S3 server: what is asked, what comes, broken connections, and what is refused."""

import contextlib
import io
import json
import os
import resource
import select
import shlex
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodels as dm
from datamodels.train.store import Layout
from tests.conftest import DIGITS, PROJECT, Outcome, in_process

BUCKET, ROWS = "madrylab-datamodels", 40
rng = np.random.default_rng(0)
ARRAYS = {
    "train_masks": rng.random((ROWS, 21404)) < 0.5,
    "test_margins": rng.normal(size=(ROWS, 3138)).astype(np.float16),
    "train_margins": rng.normal(size=(ROWS, 21404)).astype(np.float16),
}
LARGER = rng.normal(size=(90, 21404)).astype(np.float16)
DATAMODELS = rng.bytes(10_000)
CIFAR = PROJECT / "configs" / "cifar_50pct.yaml"
FMOW = [PROJECT / "configs" / "fmow_50pct.yaml", "--models=30", "--eval_models=10"]


class Proxy:
    """Passes connections on to a port, and ends them once they have brought so many bytes (None: never)."""

    def __init__(self, port: int, cut: Sequence[int | None] = ()) -> None:
        self.target, self.cut, self.sent = port, list(cut), bytearray()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            ends = self.listener.accept()[0], socket.create_connection(("127.0.0.1", self.target))
            threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        left = self.cut.pop(0) if self.cut else None
        with contextlib.suppress(OSError), client, server:
            while True:
                for end in select.select([client, server], [], [])[0]:
                    data = end.recv(65536)
                    if end is client:
                        self.sent += data
                        server.sendall(data)
                    elif left is not None:
                        client.sendall(data[:left])
                        left = max(0, left - len(data))
                    else:
                        client.sendall(data)
                    if not data or left == 0:
                        return


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where moto's S3 listens; it holds 40 rows of FMoW and a file of datamodels."""
    pytest.importorskip("moto.server", reason="moto is not installed: `make test` installs it")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys)
    s3.create_bucket(Bucket=BUCKET)
    for name, values in ARRAYS.items():
        s3.put_object(Bucket=BUCKET, Key=f"fmow/data/{name}_50pct.npy", Body=npy(values))
    s3.put_object(Bucket=BUCKET, Key="fmow/datamodels/test_50pct.pt", Body=DATAMODELS)
    s3.put_object(Bucket=BUCKET, Key="fmow/data/train_margins_20pct.npy", Body=npy(LARGER))
    s3.put_object(Bucket=BUCKET, Key="fmow/data/train_masks_75pct.npy", Body=b"no array")
    yield port
    server.stop()


@pytest.fixture
def fetch(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """Runs `fetch` on that server, or on the port of a proxy, with credentials."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(f"AWS_{name}", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")

    def run(*options: object, port: int = port, config: list[Any] = FMOW) -> Outcome:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        return in_process(capsys, "fetch", *config, "--root", tmp_path / "root", *options)

    return run


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_bytes_and_price_come_first_and_nobody_is_asked(fetch: Any, tmp_path: Path) -> None:
    found = fetch("--what=masks,margins,logits,datamodels", port=1, config=[CIFAR])
    *lines, total, end = found.out.splitlines()
    assert found.code == 0
    assert [line.rpartition("/")[2] for line in lines] == [
        *("train_masks_50pct.npy", "test_margins_50pct.npy", "train_margins_50pct.npy"),
        *("train_logits_50pct.npy", "test_logits_50pct.npy", "test_50pct.pt", "train_50pct.pt"),
    ]
    # the README of datamodels-data: 49 + 346 GB (of 2^30 bytes), and 2 + 10 of its 16.9 GB of datamodels
    assert float(total.split()[0]) / 1.073741824 == pytest.approx(49 + 346 + 11.2, abs=1)
    assert "36.60 USD at 0.09 USD" in total
    assert "2023-05-25" in total
    assert "--yes" in end
    assert "about 0.00 USD at 0 USD for 2^30 bytes out of AWS (--price)" in fetch("--price=0", config=[CIFAR]).out
    assert not (tmp_path / "root").exists()


def test_files_come_as_they_are_and_only_once(fetch: Any, tmp_path: Path, port: int, capsys: Any) -> None:
    proxy = Proxy(port)
    found = fetch("--what=masks,test_margins,datamodels", "--yes", port=proxy.port)
    assert found.code == 0, found.err
    data = tmp_path / "root" / "fmow" / "data"
    assert (data / "train_masks_50pct.npy").read_bytes() == npy(ARRAYS["train_masks"])
    assert (data / "test_margins_50pct.npy").read_bytes() == npy(ARRAYS["test_margins"])
    assert (data.parent / "datamodels" / "test_50pct.pt").read_bytes() == DATAMODELS
    assert not (data / "train_margins_50pct.npy").exists()
    assert proxy.sent.count(b"GET /") == proxy.sent.lower().count(b"x-amz-request-payer: requester") > 5
    _, *command = shlex.split(found.out.splitlines()[-1])
    status = json.loads(in_process(capsys, "status", *command[1:], "--json").out)
    assert (status["done"], status["total"]) == (ROWS, ROWS)

    before, sent = files(tmp_path), len(proxy.sent)
    again = fetch("--what=masks,test_margins,datamodels", "--yes", port=proxy.port)
    assert again.out.count("is there already") == 3
    assert (len(proxy.sent), files(tmp_path)) == (sent, before)


def test_ten_broken_connections_change_nothing(fetch: Any, tmp_path: Path, port: int) -> None:
    proxy = Proxy(port, cut=[None, None, *range(300_000, 360_000, 6_000)])
    larger = [PROJECT / "configs" / "fmow_20pct.yaml", "--models=80", "--eval_models=10"]
    found = fetch("--what=train_margins", "--yes", port=proxy.port, config=larger)
    assert found.code == 0, found.err
    assert proxy.cut == []
    assert (tmp_path / "root" / "fmow" / "data" / "train_margins_20pct.npy").read_bytes() == npy(LARGER)


def test_rows_make_a_shorter_root(fetch: Any, tmp_path: Path, port: int, capsys: Any) -> None:
    chosen = np.r_[3:9, 11, 32:36]
    found = fetch("--what=masks,margins", "--rows=3:9,11:12,32:36", "--yes")
    assert found.code == 0, found.err
    for name in ("train_masks", "test_margins", "train_margins"):
        read = np.load(tmp_path / "root" / "fmow" / "data" / f"{name}_50pct.npy")
        assert read.dtype == ARRAYS[name].dtype
        assert np.array_equal(read, ARRAYS[name][chosen])
    config = shlex.split(found.out.splitlines()[-1])[2]
    store = dm.open(config, root=tmp_path / "root")
    assert (store.models, store.eval_models) == (7, 4)
    before = files(tmp_path)
    for rows in (["--rows=0:11"], []):
        assert "holds rows 3:9,11:12,32:36 of 40 in" in fetch("--what=masks", *rows).error
    assert files(tmp_path) == before


def test_what_a_full_disk_leaves_is_completed_by_the_next_call(fetch: Any, tmp_path: Path, port: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, limits[1]))
    try:
        found = fetch("--what=masks", "--yes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.code == 1
    assert found.err.splitlines()[-1].startswith("error: cannot write")
    data, proxy = tmp_path / "root" / "fmow" / "data", Proxy(port)
    (part,) = data.iterdir()
    assert (part.suffix, part.stat().st_size) == (".part", 600_000)
    assert not list(data.glob("*.npy"))
    assert "left" in fetch("--what=masks").out
    assert fetch("--what=masks", "--yes", port=proxy.port).code == 0
    assert b"range: bytes=600000-" in proxy.sent.lower()
    assert [path.read_bytes() for path in data.iterdir()] == [npy(ARRAYS["train_masks"])]


def test_what_s3_refuses_is_one_line(fetch: Any, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*options: object, **more: Any) -> str:
        found = fetch("--yes", *options, **more)
        assert (found.code, found.err.count("\n")) == (2, 1)
        assert not list(tmp_path.rglob("*.np*"))
        return found.err

    at_20 = [PROJECT / "configs" / "fmow_20pct.yaml"]
    assert "fmow/data/train_masks_20pct.npy: S3 answers NoSuchKey" in error(config=at_20)
    at_75 = [PROJECT / "configs" / "fmow_75pct.yaml"]
    assert "train_masks_75pct.npy is not a .npy file" in error(config=at_75)
    assert "holds bool [40, 21404] in 856,288 bytes, expected bool [41, 21404]: `--models`" in error("--models=31")
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)
    assert "S3 answers InvalidAccessKeyId" in error()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "no AWS credentials were found" in error()
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert error() == "error: fetch needs boto3: run `pip install boto3`\n"


def test_what_is_not_published_is_refused(fetch: Any, tmp_path: Path) -> None:
    assert "expected some of masks, margins, datamodels, train_masks" in fetch("--what=logits").error
    at_20 = [PROJECT / "configs" / "cifar_20pct.yaml"]
    assert "train_datamodels" in fetch("--what=train_datamodels", config=at_20).error
    assert "digits, alpha 0.5, is not published" in fetch(config=[DIGITS]).error
    assert "alpha 0.4, is not published" in fetch("--alpha=0.4").error
    assert "data.train is 2000" in fetch(config=[PROJECT / "configs" / "cifar_debug.yaml"]).error
    assert "--rows has 5 after 3:9, expected ranges that ascend" in fetch("--rows=3:9,5:6").error
    assert "--price is -1" in fetch("--price=-1").error
    layout = Layout(tmp_path / "root", "fmow", "50pct")
    layout.data.mkdir(parents=True)
    np.save(layout.array("train_masks"), ARRAYS["train_masks"])
    assert "holds what `datamodels fetch` did not write" in fetch("--rows=0:40").error
    assert fetch("--what=masks", "--yes").code == 0
    layout.manifest.write_text("{}")
    assert "a store is never overwritten" in fetch("--what=masks").error
