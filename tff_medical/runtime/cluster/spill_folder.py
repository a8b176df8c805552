"""Folder into which a node of Ray writes what does not fit into its memory.

That may be sums of clients' updates without noise, or the data of a client. Ray
makes the folder for everybody when it first needs it. It opens the folder of
the session again with each process that it starts, but not the one within it
that is there already.
"""

from __future__ import annotations

import os
import pathlib
import stat
from typing import Any


def close() -> str:
  """Makes this node's folder, closed to other users.

  Returns:
    Why it cannot be closed, or ''.
  """
  import ray

  node: Any = ray._private.worker._global_node
  number = ray.get_runtime_context().get_node_id()
  folder = pathlib.Path(
    node.get_session_dir_path(), f'ray_spilled_objects_{number}'
  )
  try:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
  except OSError as error:
    return (
      f'{folder}, into which Ray writes what does not fit into memory, cannot '
      f'be made ({error.strerror})'
    )
  # Others can write beside it, and may have been there first.
  if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
    return (
      f'{folder}, into which Ray writes what does not fit into memory, belongs '
      'to another user of the node; start the node again, with its --temp-dir '
      'in a folder that is closed to others'
    )
  folder.chmod(0o700)
  return ''
