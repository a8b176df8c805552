"""A program of a user who installed the wheel: two private rounds, by TFF.

python installed_program.py FOLDER_FOR_RECORDS
"""

import sys

import numpy as np
import tensorflow_federated as tff

import tff_medical


def main(folder: str) -> None:
  """Trains, and prints where the library lies and what the rounds cost."""
  spec = tff_medical.data.phantoms.PhantomSpec(
    num_train=48, num_validation=8, num_test=8
  )
  data = tff_medical.data.loading.load_synthetic(spec, tfds_dir=folder)
  task = tff_medical.learning.tasks.Task(
    data=data,
    partition=tff_medical.data.partition.iid(
      data.train, 12, np.random.default_rng(0)
    ),
    model='cnn_small',
  )
  privacy = tff_medical.privacy
  mechanism = privacy.calibration.calibrate(
    privacy.mechanisms.GaussianMechanism(
      sampling=privacy.sampling.PoissonSampling(12, 6),
      clipping=privacy.mechanisms.FixedClipping(1.0),
    ),
    target_epsilon=8.0,
    delta=1e-2,
    rounds=2,
  )
  tff_medical.runtime.set_local_context()
  process = tff_medical.learning.build_dp_fed_avg(
    task.tff_model,
    mechanism,
    client_optimizer=tff.learning.optimizers.build_sgdm(0.1),
  )
  state = process.initialize()
  before = process.get_model_weights(state).trainable
  feed = tff_medical.program.feeds.ClientFeed(task.clients, batch_size=4)
  for round_num in (1, 2):
    cohort = mechanism.sampling.draw(0, round_num, attempt=round_num)
    state = process.next(state, feed(cohort)).state
  after = process.get_model_weights(state).trainable
  moved = sum(float(np.abs(a - b).sum()) for a, b in zip(after, before))
  assert moved > 0, moved
  epsilon = privacy.accounting.epsilon(
    mechanism.charge_event(), rounds=2, delta=1e-2
  )
  print(f'{tff_medical.__file__}\nepsilon {epsilon:.2f}, moved {moved:.3g}')


if __name__ == '__main__':
  main(sys.argv[1])
