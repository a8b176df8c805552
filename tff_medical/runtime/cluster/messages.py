"""Messages between the driver and its workers; Ray pickles them.

Whatever comes from clients is an argument or the result of a worker's method.
Ray shows neither in its logs and dashboard. Names, ids and errors that it does
show hold nothing of a client: a worker returns an error as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Versions:
  """What driver and workers must share.

  Attributes:
    python: Version of Python, major and minor.
    tensorflow: Version of TensorFlow.
    tensorflow_federated: Version of TFF.
    tff_medical: Digest of the code of the project.
  """

  python: str
  tensorflow: str
  tensorflow_federated: str
  tff_medical: str


@dataclasses.dataclass(frozen=True)
class Shared:
  """An object of Ray's store, fetched by a worker that does not have it yet.

  Attributes:
    key: Key of the object; equal keys mean equal objects.
    ref: List of its one reference. Ray would fetch a reference that is an
      argument itself before every call.
  """

  key: str
  ref: list[Any]


@dataclasses.dataclass(frozen=True)
class Call:
  """A pass over all clients, of which a worker runs portions.

  Attributes:
    key: Number of this pass of this invocation; later ones have larger numbers.
    computation: Serialized computation and its functions, in Ray's store.
    number: Number of the pass in the plan of the computation.
    values: List of the reference to the encoded values of the leaves that all
      clients share, in Ray's store.
    portions: Number of portions, which decides the tree of merges.
  """

  key: int
  computation: Shared
  number: int
  values: list[Any]
  portions: int


@dataclasses.dataclass(frozen=True)
class Portion:
  """Clients of a portion.

  Attributes:
    number: Number of the portion.
    first: Position of its first client in the cohort.
    clients: Number of its clients.
    leaves: Encoded values of each leaf at the clients, by the position of the
      leaf among those that the pass reads; one value a client.
  """

  number: int
  first: int
  clients: int
  leaves: Mapping[int, Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Failure:
  """An error that would come again on another worker.

  Attributes:
    client: Position in the cohort of the client that failed; None if the error
      is not of a client.
    message: Message of the error.
    is_input: Whether the user can mend it (`InputError`).
  """

  client: int | None
  message: str
  is_input: bool


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a portion, whose total stays at the worker.

  Attributes:
    kept: Encoded values of the kept leaves, one list a leaf with one value a
      client of the portion.
    failure: Error, if the portion failed.
    findings: What the worker has found of its clients' data; see
      `recipes.take_findings`.
  """

  kept: Sequence[Sequence[Any]] = ()
  failure: Failure | None = None
  findings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
