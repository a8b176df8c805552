"""Small audited runs of a linear model, for tests."""

import collections

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

from tff_medical import learning
from tff_medical.auditing import canaries as canaries_lib
from tff_medical.auditing import canary_audit
from tff_medical.data import clients as clients_lib
from tff_medical.data import images
from tff_medical.data import units as units_lib
from tff_medical.learning import batched_clients
from tff_medical.learning import dp_sgd
from tff_medical.privacy import accounting
from tff_medical.program import client_groups
from tff_medical.program import feeds

SIDE = 24
SHAPE = (SIDE, SIDE, 1)
DELTA = 1e-3
CLIENT_LEARNING_RATE = 0.1


def linear_model():
  """Returns a model of two classes with 2 * SIDE**2 + 2 weights, all 0."""
  pixels = SIDE * SIDE

  @tf.function
  def predict(weights, x, training=True):
    del training
    matrix, bias = weights[0]
    return tf.reshape(x, [-1, pixels]) @ matrix + bias

  def loss(output, label, sample_weight=None):
    del sample_weight
    return tf.reduce_mean(
      tf.nn.sparse_softmax_cross_entropy_with_logits(label, output)
    )

  zeros = (np.zeros((pixels, 2), np.float32), np.zeros(2, np.float32))
  return tff.learning.models.FunctionalModel(
    initial_weights=(zeros, ()),
    predict_on_batch_fn=predict,
    loss_fn=loss,
    input_spec=collections.OrderedDict(
      x=tf.TensorSpec((None, *SHAPE)), y=tf.TensorSpec((None,), tf.int64)
    ),
  )


def split(count):
  """Returns `count` images of noise with random labels."""
  rng = np.random.default_rng(0)
  return images.Split(
    images=rng.integers(0, 256, (count, *SHAPE), np.uint8),
    labels=rng.integers(0, 2, count),
  )


def client_feed(num_clients):
  """Returns the feed of clients with 4 images each."""
  parts = tuple(np.array_split(np.arange(4 * num_clients), num_clients))
  clients = clients_lib.ImageClientData(split(4 * num_clients), parts)
  return feeds.ClientFeed(clients, batch_size=4)


def group_feed(num_clients):
  """Returns the feed of groups of the clients of `client_feed`."""
  return client_groups.ClientGroupFeed(
    client_feed(num_clients), batched_clients.GroupSize(clients=16, images=64)
  )


def unit_feed(num_records):
  """Returns the feed of records on 3 sites."""
  parts = tuple(np.array_split(np.arange(num_records), 3))
  return feeds.UnitFeed(
    split(num_records),
    units_lib.record_units(parts),
    num_clients=3,
    microbatch_size=16,
  )


def client_process(actual, canaries):
  """Returns DP-FedAvg whose aggregator does what `actual` says."""
  model = canaries_lib.with_canaries(
    linear_model(),
    canaries,
    length=canaries_lib.gradient_length(1.0, CLIENT_LEARNING_RATE),
  )
  optimizer = tff.learning.optimizers.build_sgdm(CLIENT_LEARNING_RATE)
  return learning.build_dp_fed_avg(model, actual, client_optimizer=optimizer)


def group_process(actual, canaries):
  """Returns DP-FedAvg with clients in one batch, as `actual` says."""
  model = canaries_lib.with_canaries(
    linear_model(),
    canaries,
    length=canaries_lib.gradient_length(1.0, CLIENT_LEARNING_RATE),
    by_unit=True,
  )
  return learning.build_batched_dp_fed_avg(
    model, actual, client_learning_rate=CLIENT_LEARNING_RATE
  )


def record_process(actual, canaries):
  """Returns DP-SGD that does what `actual` says."""
  model = canaries_lib.with_canaries(
    linear_model(),
    canaries,
    length=canaries_lib.gradient_length(1.0, 1.0),
    by_unit=True,
  )
  return dp_sgd.build_dp_sgd(model, actual)


def steps(process, claimed, feed, *, rounds, cohort_seed=0):
  """Returns the steps of a run whose cohorts are drawn as claimed."""
  state = process.initialize()
  taken = canary_audit.UpdateRecorder(process.get_model_weights(state))
  for round_num in range(1, rounds + 1):
    cohort = claimed.sampling.draw(cohort_seed, round_num, round_num)
    state = process.next(state, feed(cohort)).state
    taken(process.get_model_weights(state))
  return taken


def findings(scores, canaries, claimed, *, rounds):
  """Returns the bounds beside what the claimed mechanism's ledger says."""
  return canary_audit.findings(
    scores,
    canaries.included,
    upper=lambda delta: accounting.pld_epsilon(
      claimed.charge_event(), rounds=rounds, delta=delta
    ),
    delta=DELTA,
    confidence=0.95,
  )
