"""Making a file only if it is not there, where a store can do that in one step."""

import contextlib
import errno
import os
import uuid
from typing import Any
from urllib.parse import urlsplit

from pipelines.storage.store import RunStore

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_EXISTS = (409, 412)  # statuses of a conditional upload: another was under way, or is done


def create(store: RunStore, path: str, data: bytes) -> bool | None:
    """Whether this call made the file; None if the store cannot tell (nothing is written then).

    On a local disk a hard link is made. An upload to S3 has the header If-None-Match, for which
    boto3 is needed: pyarrow does not send it. Whatever else S3 says leaves the question open.
    """
    if store.is_local:
        return _linked(store, path, data)
    if store.root.startswith("s3://"):
        return _uploaded(f"{store.root.rstrip('/')}/{path}", data)
    return None


def _linked(store: RunStore, path: str, data: bytes) -> bool | None:
    folder, _, name = path.rpartition("/")
    staged = f"{folder}/.tmp-{uuid.uuid4().hex}-{name}".lstrip("/")
    store.write_bytes(staged, data)
    try:
        os.link(store.local_path(staged), store.local_path(path))
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_LINKS:
            return None
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            store.local_path(staged).unlink()
    return True


def _uploaded(address: str, data: bytes) -> bool | None:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return None
    place = urlsplit(address)
    client: Any = boto3.client("s3")
    try:
        client.put_object(
            Bucket=place.netloc, Key=place.path.lstrip("/"), Body=data, IfNoneMatch="*"
        )
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return False if status in _EXISTS else None
    except BotoCoreError:
        return None
    return True
