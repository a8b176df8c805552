"""Tests of the verification of epsilon in the ledgers of earlier versions."""

import hashlib
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical.auditing import verification
from tff_medical.privacy import accounting
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling
from tff_medical.program import run_folder

_DELTA = 1e-3
# Earlier versions counted each of them; this one counts 1,026.
_CHARGES = 1025


class VerificationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = run_folder.RunFolder(
      pathlib.Path(self.create_tempdir().full_path)
    )
    self.mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(1000, 100),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=5.0,
    )

  def _state(self, epsilon):
    """Writes a ledger whose chain holds and whose last line states this."""
    with ledger_lib.PrivacyLedger(
      self.folder.ledger, self.mechanism, delta=_DELTA
    ) as book:
      book.restore(
        round_num=_CHARGES,
        attempt=_CHARGES,
        charges=_CHARGES,
        evidence='test',
      )
    header, last = self.folder.ledger.read_text().splitlines()
    record = {**json.loads(last), 'epsilon': epsilon}
    del record['digest']
    body = json.dumps(record, sort_keys=True, ensure_ascii=False)
    digest = json.loads(header)['digest'] + body
    record['digest'] = hashlib.sha256(digest.encode()).hexdigest()
    last = json.dumps(record, sort_keys=True, ensure_ascii=False)
    self.folder.ledger.write_text(f'{header}\n{last}\n')

  @parameterized.parameters(
    (1.0, True),
    (1.0005, True),
    (0.999_999_5, True),
    (0.999_998, False),
    (1.01, False),
  )
  def test_a_ledger_may_state_what_an_earlier_version_did(
    self, factor, is_right
  ):
    charges = [(self.mechanism.charge_event(), _CHARGES)]
    earlier = accounting.composed_epsilon(charges, delta=_DELTA, tight=True)
    now = accounting.composed_epsilon(charges, delta=_DELTA)
    self.assertGreater(now, 1.0005 * earlier)
    self._state(factor * earlier)
    checks = {c.what: c for c in verification.verify(self.folder.path)}
    self.assertTrue(checks['ledger: chain of digests'].is_right)
    self.assertEqual(checks['ledger: ε from its events'].is_right, is_right)


if __name__ == '__main__':
  absltest.main()
