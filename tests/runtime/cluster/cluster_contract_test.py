"""The cluster runtime gives what the local runtime gives, on two nodes."""

from unittest import mock

from absl.testing import absltest

from tests.runtime import contract
from tests.runtime.cluster import nodes
from tff_medical import runtime


class ClusterContractTest(contract.Contract):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cluster = cls.enter_context(nodes.cluster(workers=2))
    cls.context = nodes.context(cluster)
    cls.reference = runtime.create_local_context(client_threads=1)
    cls.with_secure_sums = cls.reference

  @classmethod
  def tearDownClass(cls):
    cls.context.close()
    super().tearDownClass()

  def one_after_another(self):
    # A cohort of one portion.
    return mock.patch.object(self.context, '_portions', 1)


if __name__ == '__main__':
  absltest.main()
