"""Tests of reading the ledger of a data set: what no run writes is refused."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tff_medical import _validate
from tff_medical.privacy import data_ledger
from tff_medical.privacy import data_ledger_contents
from tff_medical.privacy import ledger as ledger_lib
from tff_medical.privacy import ledger_file
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling

_MECHANISM = mechanisms.GaussianMechanism(
  sampling=sampling.PoissonSampling(1000, 100),
  clipping=mechanisms.FixedClipping(1.0),
  noise_multiplier=1.0,
  privacy_unit='record',
)


class DataLedgerContentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'data_ledger.jsonl'

  def _reserve(self):
    units = data_ledger.Units(
      data_digest='sha256:of_all_images',
      data_is_public=False,
      dataset='my images',
      privacy_unit='record',
      neighboring_relation='add_or_remove_one',
    )
    request = data_ledger.Request('a', 'train', 5)
    book = data_ledger.DataLedger(self.path, 9.0)
    book.reserve(units, _MECHANISM, request, delta=1e-3)

  @parameterized.parameters(
    ('charges', -1), ('charges', '5'), ('kind', 'gift'), ('epsilon', 'nan'),
    ('event', 'NoOpDpEvent()'), ('run_id', ''),
  )  # fmt: skip
  def test_refuses_what_no_run_writes_even_if_it_is_sealed(self, name, value):
    self._reserve()
    record = json.loads(self.path.read_text().splitlines()[1])
    del record['digest']
    with ledger_file.LedgerFile(self.path, remedy='', change_remedy='') as file:
      file.load()
      file.append({**record, name: value})
    with self.assertRaisesRegex(_validate.InputError, 'line 3 is not a ledger'):
      data_ledger_contents.read(self.path)

  def test_the_ledger_of_a_run_is_no_data_ledger(self):
    path = self.folder / 'a.jsonl'
    with ledger_lib.PrivacyLedger(path, _MECHANISM, delta=1e-3) as ledger:
      ledger.charge(1)
    with self.assertRaisesRegex(_validate.InputError, 'is no data ledger'):
      data_ledger_contents.read(path)


if __name__ == '__main__':
  absltest.main()
