"""Tests of the closed form of a Gaussian against dp-accounting."""

from absl.testing import absltest
from absl.testing import parameterized
import dp_accounting

from tff_medical.privacy import gaussian_bound


class GaussianEpsilonTest(parameterized.TestCase):
  @parameterized.product(
    noise=(1e-3, 0.3, 1.0, 30.0, 1000.0), delta=(1e-12, 1e-5, 0.3)
  )
  def test_a_gaussian_is_never_below_and_hardly_above_the_library(
    self, noise, delta
  ):
    exact = dp_accounting.get_epsilon_gaussian(noise, delta)
    stated = gaussian_bound.gaussian_epsilon(noise, delta)
    self.assertBetween(stated, exact - 2e-12, exact * (1 + 1e-8) + 2e-12)


if __name__ == '__main__':
  absltest.main()
