"""Tests of reading a ledger: what no run writes is refused, whoever reads."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from tests.privacy import sealing
from tff_medical import _validate
from tff_medical.privacy import ledger
from tff_medical.privacy import ledger_contents
from tff_medical.privacy import mechanisms
from tff_medical.privacy import sampling


class LedgerContentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.create_tempdir().full_path
    self.path = pathlib.Path(folder, 'privacy_ledger.jsonl')

  def _open(self):
    mechanism = mechanisms.GaussianMechanism(
      sampling=sampling.PoissonSampling(1000, 100),
      clipping=mechanisms.FixedClipping(1.0),
      noise_multiplier=1.0,
    )
    return ledger.PrivacyLedger(self.path, mechanism, delta=1e-3)

  def _records(self):
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def _charge(self, rounds):
    with self._open() as book:
      for round_num in range(1, rounds + 1):
        book.charge(round_num)

  def test_finds_a_changed_charge(self):
    with self._open() as book:
      book.charge(1)
      book.charge(2)
    text = self.path.read_text().replace('"round": 1', '"round": 7')
    self.path.write_text(text)
    with self.assertRaisesRegex(_validate.InputError, 'line 2'):
      self._open()

  def test_finds_a_removed_charge(self):
    with self._open() as book:
      book.charge(1)
      book.charge(2)
    lines = self.path.read_text().splitlines(keepends=True)
    self.path.write_text(lines[0] + lines[2])
    with self.assertRaisesRegex(_validate.InputError, 'line 2'):
      self._open()

  def _refuses(self, records, message):
    self.path.write_text(sealing.resealed(records))
    before = self.path.read_bytes()
    with self.assertRaisesRegex(_validate.InputError, message) as caught:
      self._open()
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(_validate.InputError, message):
      ledger_contents.read(self.path)
    self.assertEqual(self.path.read_bytes(), before)

  def test_the_chain_can_be_sealed_by_this_test(self):
    """So what it seals below is refused for what it says, not its seal."""
    self._charge(4)
    before = self.path.read_text()
    self.assertEqual(sealing.resealed(self._records()), before)

  @parameterized.parameters(
    ({'charges': 1}, 'must grow'),  # Less than the line before.
    ({'attempt': 2}, 'must grow'),
    ({'attempt': 1}, 'must grow'),
    ({'round': 0}, '1 or more'),
    ({'round': -1}, '1 or more'),
    ({'charges': 0}, 'must grow'),
    ({'charges': '3'}, 'not a whole number'),
    ({'charges': 3.0}, 'not a whole number'),
    ({'charges': True}, 'not a whole number'),
    ({'charges': None}, 'not a whole number'),
    ({'epsilon': None}, 'line 4'),
    ({'epsilon': -0.5}, 'epsilon is -0.5'),
    ({'epsilon': 'nan'}, 'epsilon is nan'),
  )
  def test_refuses_what_no_run_writes_even_if_it_is_sealed_anew(
    self, changed, message
  ):
    self._charge(3)
    records = self._records()
    records[3] = {**records[3], **changed}
    self._refuses(records, message)

  def test_refuses_an_entry_that_lacks_something(self):
    self._charge(2)
    for name in ('round', 'attempt', 'charges', 'epsilon'):
      records = self._records()
      del records[2][name]
      self.path.write_text(sealing.resealed(records))
      with self.assertRaisesRegex(_validate.InputError, f'line 3.*{name}'):
        self._open()
      records[2][name] = 2
      self.path.write_text(sealing.resealed(records))

  @parameterized.parameters(1, 3, None, '2')
  def test_refuses_another_format(self, number):
    self._charge(1)
    records = self._records()
    records[0]['format'] = number
    self._refuses(records, f'of format {number!r}, this version writes 2')

  def test_read_says_what_the_ledger_says_and_changes_nothing(self):
    with self._open() as book:
      book.charge(1)
      book.charge(1, state_digest='ab')
      torn = self.path.read_bytes() + b'{"torn'
      self.path.write_bytes(torn)
      contents = ledger_contents.read(self.path)
      self.assertEqual(contents.entries, book.entries)
      self.assertEqual(contents.digest, book.digest)
      self.assertEqual(contents.run_id, book.run_id)
    self.assertEqual(contents.entries[1].state_digest, 'ab')
    self.assertEqual(contents.header['delta'], 1e-3)
    self.assertEqual(self.path.read_bytes(), torn)
    with self.assertRaises(FileNotFoundError):
      ledger_contents.read(self.path.with_suffix('.other'))

  @parameterized.parameters(
    b'not json\n', b'notes', b'[1]\n', b'{}\n', b'\xff\xfe\n'
  )
  def test_refuses_what_is_no_ledger(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(_validate.InputError, 'not a ledger'):
      self._open()
    self.assertEqual(self.path.read_bytes(), content)


if __name__ == '__main__':
  absltest.main()
