"""The one place that connects a process to a Ray cluster.

What: `connect` imports Ray, finds out who answers at the address, and joins the
cluster as a driver that neither copies the workers' output here nor reports
statistics.

Why: Ray itself waits up to 80 seconds for an address at which nobody answers,
and names no remedy for a wrong token. Its defaults copy every line that a worker
prints to the driver, and put a signal handler of its own in place of ours.

A process shows the cluster the token of `RAY_AUTH_TOKEN`, of the file
`RAY_AUTH_TOKEN_PATH`, or of `~/.ray/auth_token`, in this order
(docs.ray.io/en/latest/ray-security/token-auth.html). It asks the cluster for the
same unless `RAY_AUTH_MODE=disabled` is set. Ray before 2.52, hence every Ray of
Python 3.9, knows no tokens. With `RAY_USE_TLS=1` both sides show certificates.

>>> connect('ray://')
Traceback (most recent call last):
...
tff_medical._validate.InputError: cluster_address must be auto, HOST:PORT or \
ray://HOST:PORT, got 'ray://'
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib
import logging
import os
import pathlib
import signal
import socket
import sys
import threading
import types
from typing import Any
import warnings

from tff_medical import _validate

AUTO = 'auto'
_CLIENT_PREFIX = 'ray://'
# Seconds to wait for the address, and again for an answer of Ray.
_TIMEOUT_SECS = 4.0
# Despite its name it works on Linux: at 0 every node is at 127.0.0.1.
_LOOPBACK = 'RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER'
# What the client server asks each call for.
_CALLER = ('client_id', 'probe')
_START = 'ray start --head --include-dashboard=false'

_connected_to: str | None = None


def connect(address: str = AUTO) -> types.ModuleType:
  """Connects this process to a Ray cluster, once.

  Args:
    address: Address of the cluster: `HOST:PORT` from one of its nodes,
      `ray://HOST:PORT` of its client server from any other machine, or `auto`
      for `RAY_ADDRESS` or else the cluster that was started on this machine.

  Returns:
    The module `ray`, connected.

  Raises:
    InputError: Ray is missing, the address is malformed, nobody answers there
      within some seconds, the token is missing or wrong, the cluster has other
      versions of Ray or Python, or the process is connected to another cluster.
  """
  global _connected_to
  if address != AUTO:
    _host_and_port(address)
  ray = _import()
  if ray.is_initialized():
    if _connected_to not in (None, address):
      raise _validate.InputError(
        f'cluster_address is {address!r}, but this process is connected to '
        f'{_connected_to!r}; use one cluster a process'
      )
    return ray
  resolved = _resolve(address)
  _ask(resolved)
  _silence()
  try:
    with _own_handlers(), warnings.catch_warnings():
      warnings.simplefilter('ignore')
      ray.init(
        resolved,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
      )
  except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
    ray.shutdown()
    raise _refusal(resolved, e) from e
  _connected_to = address
  return ray


def _import() -> types.ModuleType:
  """Returns `ray`, imported with the options that it reads at its import."""
  os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
  os.environ.setdefault('RAY_AUTH_MODE', 'token')
  was_imported = sys.modules.get('ray') is not None
  try:
    ray = importlib.import_module('ray')
  except ImportError as e:
    missing = isinstance(e, ModuleNotFoundError)
    problem = 'not installed' if missing else f'broken ({e})'
    raise _validate.InputError(
      f'a cluster needs {e.name or "ray"}, which is {problem}: pip install '
      '--no-deps -r requirements-cluster.txt'
    ) from e
  if was_imported and not ray.is_initialized():
    _read_variables_again()
  return ray


def _silence() -> None:
  """Keeps messages of nodes, as of a lost worker, out of the results printed.

  Without the copying of workers' output Ray still prints those to stdout.
  """
  worker: Any = importlib.import_module('ray._private.worker')
  worker.print_to_stdstream = lambda *unused, **options: None


def _read_variables_again() -> None:
  """Makes a Ray that was imported before know the mode and the token."""
  raylet = importlib.import_module('ray._raylet')
  if hasattr(raylet, 'AuthenticationTokenLoader'):  # From 2.52 on.
    raylet.Config.initialize('')
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _resolve(address: str) -> str:
  """Returns the address that Ray joins for one that was given.

  Ray puts the machine's own address in place of the loopback's, and searches the
  machine for `auto`.
  """
  if address == AUTO:
    address = os.environ.get('RAY_ADDRESS', '') or AUTO
  if address != AUTO:
    _host_and_port(address)
  if address.startswith(_CLIENT_PREFIX):
    return address
  services = importlib.import_module('ray._private.services')
  try:
    return str(services.canonicalize_bootstrap_address(address))
  except ConnectionError as e:
    raise _nobody(
      AUTO, 'RAY_ADDRESS is not set, and no cluster runs on this machine'
    ) from e


def _host_and_port(address: str) -> tuple[str, int]:
  """Returns the parts of `HOST:PORT` or `ray://HOST:PORT`."""
  host, colon, port = address.removeprefix(_CLIENT_PREFIX).rpartition(':')
  host = host.strip('[]')
  if not (colon and host and port.isascii() and port.isdigit()):
    raise _validate.InputError(
      'cluster_address must be auto, HOST:PORT or ray://HOST:PORT, got '
      f'{address!r}'
    )
  _validate.within(
    1, 65535, **{f'port of cluster_address {address}': int(port)}
  )
  return host, int(port)


def _ask(address: str) -> None:
  """Asks who is at an address for its first answer, with this side's token.

  Raises:
    InputError: Nobody answers as Ray does, or the token is not accepted.
  """
  host, port = _host_and_port(address)
  try:
    socket.create_connection((host, port), _TIMEOUT_SECS).close()
  except OSError as e:
    raise _nobody(address, e.strerror or str(e)) from e
  grpc = importlib.import_module('grpc')
  token = _token()
  header = [('authorization', f'Bearer {token}')] if token else []
  target = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
  with _channel(grpc, target) as channel:
    try:
      call = _first_call(channel, address)
      call(timeout=_TIMEOUT_SECS, metadata=[_CALLER, *header])
    except grpc.RpcError as e:
      if e.code() == grpc.StatusCode.UNAUTHENTICATED:
        raise _bad_token(address, bool(token)) from e
      if e.code() == grpc.StatusCode.UNIMPLEMENTED:
        raise _validate.InputError(
          f'cluster_address {address} is not the port of a '
          f'{_kind(address)}; {_ports()}'
        ) from e
      raise _nobody(
        address,
        f'no answer of Ray, {e.code().name.lower()}; {_ports()}',
      ) from e
    if _asks_for_tokens():
      with contextlib.suppress(grpc.RpcError):
        call(timeout=_TIMEOUT_SECS, metadata=[_CALLER])
        raise _validate.InputError(
          f'the cluster at {address} lets anybody in: give its nodes a token '
          '(docs/cluster.md), or set RAY_AUTH_MODE=disabled to join it as it is'
        )


def _first_call(channel: Any, address: str) -> Any:
  """Returns the cheapest call that a cluster answers, without its request."""
  if address.startswith(_CLIENT_PREFIX):
    messages = importlib.import_module('ray.core.generated.ray_client_pb2')
    services = importlib.import_module('ray.core.generated.ray_client_pb2_grpc')
    request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
    call = services.RayletDriverStub(channel).ClusterInfo
  else:
    messages = importlib.import_module('ray.core.generated.gcs_service_pb2')
    services = importlib.import_module(
      'ray.core.generated.gcs_service_pb2_grpc'
    )
    request = messages.GetClusterIdRequest()
    call = services.NodeInfoGcsServiceStub(channel).GetClusterId
  return lambda **options: call(request, **options)


def _channel(grpc: types.ModuleType, target: str) -> Any:
  """Returns a gRPC channel, with TLS where Ray's own variables ask for it."""
  if os.environ.get('RAY_USE_TLS', '0').lower() not in ('1', 'true'):
    return grpc.insecure_channel(target)
  parts = {}
  for name in ('CA_CERT', 'SERVER_KEY', 'SERVER_CERT'):
    path = os.environ.get(f'RAY_TLS_{name}', '')
    try:
      parts[name] = pathlib.Path(path).read_bytes()
    except OSError as e:
      raise _validate.InputError(
        f'RAY_USE_TLS needs the file RAY_TLS_{name}, got {path!r}: {e.strerror}'
      ) from e
  credentials = grpc.ssl_channel_credentials(
    parts['CA_CERT'], parts['SERVER_KEY'], parts['SERVER_CERT']
  )
  return grpc.secure_channel(target, credentials)


def _asks_for_tokens() -> bool:
  return os.environ['RAY_AUTH_MODE'] == 'token'


def _token() -> str:
  """Returns this side's token, or '' where none is asked for or there is none."""
  if not _asks_for_tokens():
    return ''
  token = os.environ.get('RAY_AUTH_TOKEN', '')
  if token:
    return token.strip()
  path = os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'
  with contextlib.suppress(OSError):
    return pathlib.Path(path).expanduser().read_text(encoding='utf-8').strip()
  return ''


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
  """Keeps the process's own signal handlers, in place of which Ray puts its.

  Ray's Python handler would end a process that joins with the code 15. Its C++
  code installs a handler as well, which can only be replaced afterwards.
  """
  utils: Any = importlib.import_module('ray._private.utils')
  utils.set_sigterm_handler = lambda handler: None
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)


def _kind(address: str) -> str:
  return (
    "cluster's client server"
    if address.startswith(_CLIENT_PREFIX)
    else "cluster's head"
  )


def _ports() -> str:
  return (
    'ray start names the port of the head (--port, by default 6379, for '
    'HOST:PORT) and of the client server (--ray-client-server-port, by default '
    '10001, for ray://HOST:PORT)'
  )


def _nobody(address: str, reason: str) -> _validate.InputError:
  return _validate.InputError(
    f'no cluster answers at cluster_address {address}: {reason}; start one '
    f'with: {_START} (one that listens on loopback alone needs {_LOOPBACK}=0 '
    'here as well)'
  )


def _bad_token(address: str, has_token: bool) -> _validate.InputError:
  what = (
    'another token than this process shows'
    if has_token
    else 'a token, and this process has none'
  )
  return _validate.InputError(
    f'the cluster at {address} asks for {what}; set RAY_AUTH_TOKEN_PATH to a '
    "copy of the head's file (~/.ray/auth_token), and leave RAY_AUTH_MODE unset"
  )


def _refusal(address: str, error: Exception) -> _validate.InputError:
  """Returns the error in one line, for what `ray.init` refuses."""
  text = ' '.join(str(error).split())
  if 'ersion mismatch' in text:
    return _validate.InputError(
      f'the cluster at {address} has another Ray or Python: {text}; install '
      'requirements-cluster.txt under the same Python on all machines'
    )
  return _validate.InputError(
    f'the cluster at {address} could not be joined: {text}; HOST:PORT needs a '
    'node of the cluster on this machine (ray start --address=...), any other '
    'machine uses ray://HOST:10001'
  )
