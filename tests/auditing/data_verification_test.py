"""Verification of a data ledger against the ledgers of its runs."""

import pathlib

from absl.testing import absltest

from tff_medical.auditing import data_verification
from tff_medical.privacy import class_counts
from tff_medical.privacy import data_ledger
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import run_folder

_DELTA = 1e-3
_MECHANISM = mechanisms.GaussianMechanism(
  sampling=sampling.PoissonSampling(1000, 100),
  clipping=mechanisms.FixedClipping(1.0),
  noise_multiplier=1.0,
  privacy_unit='record',
)
_COUNTS = class_counts.ClassCounts(
  class_counts.ClassCountRelease(20.0), (400, 600)
)
_UNITS = data_ledger.Units(
  data_digest='sha256:of_all_images',
  data_is_public=False,
  dataset='my images',
  privacy_unit='record',
  neighboring_relation='add_or_remove_one',
)


class DataVerificationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'data_ledger.jsonl'
    self.book = data_ledger.DataLedger(self.path, 20.0)

  def _reserve(self, before):
    request = data_ledger.Request('a', 'train', 5, before=before)
    self.book.reserve(_UNITS, _MECHANISM, request, delta=_DELTA)

  def _run(self, rounds, counts=None):
    ledger = ledger_lib.PrivacyLedger(
      run_folder.RunFolder(self.folder).ledger,
      _MECHANISM,
      delta=_DELTA,
      run_id='a',
      counts=counts,
    )
    for round_num in range(ledger.rounds_charged + 1, rounds + 1):
      ledger.charge(round_num)
    return ledger

  def _check(self):
    return data_verification.verify(self.path, [self.folder])[-1]

  def test_class_counts_must_be_paid_for_there_as_well(self):
    self._run(5, _COUNTS).close()
    self._reserve(_COUNTS.release.event())
    self.assertTrue(self._check().is_right, self._check())
    self.path.unlink()
    self._reserve(None)
    self.assertFalse(self._check().is_right)
    self.assertIn('other events', self._check().found)

  def test_the_settled_ledger_is_the_one_in_the_folder(self):
    self._reserve(None)
    self._run(2).close()
    file = run_folder.RunFolder(self.folder).ledger
    before = file.read_bytes()
    with self._run(5) as ledger:
      self.book.settle(ledger)
    self.assertTrue(self._check().is_right, self._check())
    file.write_bytes(before)
    self._run(5).close()
    self.assertFalse(self._check().is_right)
    self.assertIn('another copy', self._check().found)


if __name__ == '__main__':
  absltest.main()
