"""The local runtime gives what TFF's own runtime gives."""

import gc

from absl.testing import absltest
import tensorflow_federated as tff

from tests.runtime import contract
from tff_medical import runtime


class ParityTest(contract.Contract):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.context = runtime.create_local_context(client_threads=2)
    cls.reference = (
      tff.backends.native.create_sync_local_cpp_execution_context()
    )
    # TFF's local runtime has no secure sums, its test runtime has.
    cls.with_secure_sums = (
      tff.backends.test.create_sync_test_cpp_execution_context()
    )

  @classmethod
  def tearDownClass(cls):
    cls.context = cls.reference = cls.with_secure_sums = None
    gc.collect()  # ends TFF's worker programs
    super().tearDownClass()


if __name__ == '__main__':
  absltest.main()
