"""Download the published files of a setting from Amazon S3: docs/format.md, "Published files".

Bucket, keys, types and the price are from the README of https://github.com/MadryLab/datamodels-data as of 2023-05-25.
Which datamodels there are is from its issues 2 and 3; they add up to the total sizes that the README gives.
"""

import contextlib
import fcntl
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.train.config import Outputs, Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import UNREADABLE, header, mapped, sync_folder, write_file
from datamodels.train.outputs import image_outputs
from datamodels.train.store import Array, Layout, check_space

BUCKET = "madrylab-datamodels"
PRICE = 0.09
"""US dollars for 2**30 bytes from AWS to the internet."""
PRICE_SOURCE = "README of MadryLab/datamodels-data, 2023-05-25"

PUBLISHED_SIZES = {"cifar": (50000, 10000, 10), "fmow": (21404, 3138, 62)}
"""Training examples, test examples and classes of the published data sets (of FMoW, those of 2012)."""

_ALPHAS = {"cifar": (0.1, 0.2, 0.5, 0.75), "fmow": (0.2, 0.5, 0.75)}

_HEAD, _PIECE = 4096, 2**18
"""Bytes in which the header of a .npy file ends, and bytes that are written at a time."""

_ATTEMPTS = 8
"""Connections in a row that break before they bring anything, after which a download ends."""


@dataclass(frozen=True)
class PublishedFile:
    key: str
    """Its name in the bucket."""
    path: Path
    bytes: int
    """Bytes of the chosen rows, up to the header."""
    array: Array | None
    """What it holds in the bucket; None for datamodels."""

    @property
    def parts(self) -> list[Path]:
        """What an interrupted download has left."""
        return list(self.path.parent.glob(f".{self.path.name}.*.part"))

    @property
    def left(self) -> int:
        """Bytes that are still to be downloaded."""
        done = sum(path.stat().st_size for path in self.parts)
        return 0 if self.path.exists() else max(0, self.bytes - done)


def published_files(
    layout: Layout, setting: Setting, what: Sequence[str], rows: Sequence[range] | None
) -> list[PublishedFile]:
    """Return the published files of a setting that are asked for; contacts nobody.

    what: `masks`, `margins`, `logits`, `datamodels`, or one of them, as `test_margins`. rows: ascending ranges; None
    for all. Raises UserError where these are not published, or the root holds something else.
    """
    dataset, data = setting.dataset, setting.data
    if setting.alpha not in _ALPHAS.get(dataset, ()):
        known = " and ".join(f"{name} at alpha {', '.join(map(str, alphas))}" for name, alphas in _ALPHAS.items())
        raise UserError(f"{dataset}, {setting.described}, is not published, expected {known}")
    if data.train or data.test:
        raise UserError(f"data.train is {data.train} and data.test {data.test}, expected null: all is published")
    for one, other in itertools.pairwise(rows or ()):
        if other.start < one.stop:
            raise UserError(f"--rows has {other.start} after {one.start}:{one.stop}, expected ranges that ascend")
    if layout.manifest.exists():
        raise UserError(f"{layout.manifest} exists, and a store is never overwritten: use another --root")
    layout.refuse_orphans()

    train, test, classes = PUBLISHED_SIZES[dataset]
    has_logits = dataset == "cifar"
    outputs = image_outputs(Outputs(train_logits=has_logits, test_logits=has_logits), train, test, classes)
    found = dict[str, PublishedFile]()
    for array in Array.of(setting.rows, train, outputs):
        path = layout.array(array.name)
        size = array.bytes * _count(setting, rows) // setting.rows
        found[array.name] = PublishedFile(f"{dataset}/data/{path.name}", path, size, array)
    for split, targets in {"test": test, "train": train}.items():
        if split == "test" or (dataset == "cifar" and setting.alpha == 0.5):
            path = layout.folder / "datamodels" / f"{split}_{layout.tag}.pt"
            size = 4 * (train + 2) * targets
            found[f"{split}_datamodels"] = PublishedFile(f"{dataset}/datamodels/{path.name}", path, size, None)

    config, content = _config(layout, setting, rows)
    there = config.read_bytes() if config.exists() else b"" if rows else content
    if there != content and any(file.array and (file.path.exists() or file.parts) for file in found.values()):
        held = there.decode().partition("\n")[0] or "what `datamodels fetch` did not write"
        asked = content.decode().partition("\n")[0]
        raise UserError(f"{layout.data} holds {held}, expected {asked}: use another --root".replace("# ", ""))

    kinds = {name: name.partition("_")[2] for name in found}
    for word in what:
        if word not in {*kinds, *kinds.values()}:
            expected = ", ".join([*dict.fromkeys(kinds.values()), *kinds])
            raise UserError(f"--what has {word!r}, expected some of {expected}, which are published of this setting")
    return [found[name] for name, kind in kinds.items() if name in what or kind in what]


def _count(setting: Setting, rows: Sequence[range] | None) -> int:
    return sum(map(len, rows)) if rows else setting.rows


def _config(layout: Layout, setting: Setting, rows: Sequence[range] | None) -> tuple[Path, bytes]:
    """Return path and content of a config for the chosen rows; its first line says which they are.

    The published evaluation rows among them are for evaluation, or the last tenth if there are none or no others.
    """
    count, eval_models, told = _count(setting, rows), setting.eval_models, "all rows"
    if rows:
        evaluation = sum(len(range(max(each.start, setting.models), each.stop)) for each in rows)
        eval_models = evaluation if 0 < evaluation < count else count // 10
        told = "rows " + ",".join(f"{each.start}:{each.stop}" for each in rows)
    lines = [
        f"# {told} of {setting.rows} in s3://{BUCKET}/{setting.dataset}",
        *(f"dataset: {setting.dataset}", f"alpha: {setting.alpha:g}"),
        *(f"models: {count - eval_models}", f"eval_models: {eval_models}"),
    ]
    return layout.folder / f"fetch_{layout.tag}.yaml", "".join(f"{line}\n" for line in lines).encode()


def fetch_published(
    layout: Layout,
    setting: Setting,
    files: Sequence[PublishedFile],
    rows: Sequence[range] | None,
    progress: Callable[[str, int, int], None],
) -> Path:
    """Download what is still missing of the files; returns the path of a config for them.

    Until a file is whole it has another name, from which the next call goes on. Raises UserError where S3 refuses, or
    holds something else than is expected; WorkError where the network or the disk fails.
    """
    check_space(layout.folder, sum(file.left for file in files))
    config, content = _config(layout, setting, rows)
    client = _client()
    try:
        for folder in {config.parent, *(file.path.parent for file in files)}:
            folder.mkdir(parents=True, exist_ok=True)
        write_file(config, content)
        for file in files:
            if not file.path.exists():
                with _told(f"s3://{BUCKET}/{file.key}"):
                    _download(client, file, rows, progress)
            elif file.array:
                there = mapped(file.path)
                shape, dtype = (_count(setting, rows), *file.array.shape[1:]), file.array.dtype
                if (there.shape, there.dtype) != (shape, dtype):
                    raise UserError(f"{file.path} holds {there.dtype} {list(there.shape)}, expected {dtype} {shape}")
    except OSError as error:
        place = f"{error.filename or layout.folder}: {error.strerror or error}"
        raise WorkError(f"cannot write {place}; the same command goes on from what is there") from None
    return config


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError:
        raise UserError("fetch needs boto3: run `pip install boto3`") from None
    with _told(f"s3://{BUCKET}"):
        return boto3.Session().client("s3", config=Config(retries={"mode": "standard", "max_attempts": 5}))


def _network_errors() -> tuple[type[Exception], ...]:
    from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

    return ConnectionError, HTTPClientError, IncompleteReadError


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what boto3 raises into UserError, or into WorkError where the same again may help."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    try:
        yield
    except ClientError as error:
        code, text = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        hint = " (it says so of a file that does not exist, too)" if code == "AccessDenied" else ""
        kind = WorkError if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500 else UserError
        raise kind(f"{what}: S3 answers {code}: {text}{hint}") from None
    except NoCredentialsError:
        raise UserError(
            f"{what}: no AWS credentials were found, expected some, as who downloads pays: run `aws configure`, or set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except _network_errors() as error:
        raise WorkError(f"{what}: {error}; the same command goes on from what is there") from None
    except BotoCoreError as error:
        raise UserError(f"{what}: {error}") from None


def _download(
    client: Any, file: PublishedFile, rows: Sequence[range] | None, progress: Callable[[str, int, int], None]
) -> None:
    """Download a file, or of its rows those in `rows`. Raises UserError, OSError, and what boto3 raises."""
    answer = _get(client, file.key, 0, 1)
    answer["Body"].read()
    tag, size = answer["ETag"], int(answer["ContentRange"].rpartition("/")[2])
    prefix, spans = b"", [(0, size)]
    if file.array:
        head = b"".join(_pieces(client, file.key, 0, min(_HEAD, size), tag))
        offset = _check_header(file.array, file.key, head, size)
        if rows:
            row_bytes = (size - offset) // file.array.shape[0]
            prefix = header((sum(map(len, rows)), *file.array.shape[1:]), file.array.dtype)
            spans = [(offset + each.start * row_bytes, offset + each.stop * row_bytes) for each in rows]
    total = len(prefix) + sum(stop - start for start, stop in spans)

    part = file.path.with_name(f".{file.path.name}.{tag.strip(chr(34))}.part")
    with open(part, "ab") as target:
        try:
            fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{part} is being written by another `datamodels fetch`") from None
        target.write(prefix[target.tell() :])
        done = target.tell() - len(prefix)
        for start, stop in spans:
            skipped = min(done, stop - start)
            done -= skipped
            for piece in _pieces(client, file.key, start + skipped, stop, tag):
                target.write(piece)
                progress(f"{file.path.name}, MB", target.tell() // 10**6, total // 10**6)
        target.flush()
        os.fsync(target.fileno())
        part.rename(file.path)
    sync_folder(file.path.parent)


def _get(client: Any, key: str, start: int, stop: int, **options: str) -> Any:
    span = f"bytes={start}-{stop - 1}"
    return client.get_object(Bucket=BUCKET, Key=key, Range=span, RequestPayer="requester", **options)


def _pieces(client: Any, key: str, start: int, stop: int, tag: str) -> Iterator[bytes]:
    """Yield the bytes [start, stop) of a file as long as its ETag is `tag`; goes on where a connection breaks."""
    failed = 0
    while start < stop:
        try:
            body = _get(client, key, start, stop, IfMatch=tag)["Body"]
            while piece := body.read(_PIECE):
                start, failed = start + len(piece), 0
                yield piece
        except _network_errors():
            failed += 1
            if failed == _ATTEMPTS:
                raise
            time.sleep(2.0**failed / 4 if failed > 1 else 0)


def _check_header(array: Array, key: str, head: bytes, size: int) -> int:
    """Return where the values of a .npy file of `size` bytes begin. Raises UserError unless it holds the array."""
    content = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(content)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read(content)
    except UNREADABLE as error:
        raise UserError(f"s3://{BUCKET}/{key} is not a .npy file: {error}") from None
    found = f"{dtype} {list(shape)}{', columns first,' if is_fortran else ''} in {size:,} bytes"
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if (shape, dtype, is_fortran, size) != (array.shape, array.dtype, False, content.tell() + nbytes):
        hint = ""
        if shape[1:] == array.shape[1:]:
            hint = f": `--models` and `--eval_models` of {shape[0]} rows in all, or --rows for some of them"
        raise UserError(f"s3://{BUCKET}/{key} holds {found}, expected {array.dtype} {list(array.shape)}{hint}")
    return content.tell()
