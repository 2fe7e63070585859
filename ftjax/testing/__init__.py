"""What must hold for every method, as functions for the tests of one's own.

    @pytest.mark.parametrize("invariant", testing.INVARIANTS)
    def test_scale(invariant):
        invariant(testing.Trial("mypackage.scale:Scale"))

Each raises AssertionError where a method breaks it, on a small random model. Where there are eight
devices, as with XLA_FLAGS=--xla_force_host_platform_device_count=8, steps are sharded, too.
"""

from ftjax.testing.bases import BASES, HEAD, build, make_batch
from ftjax.testing.invariants import INVARIANTS
from ftjax.testing.trial import Trial, stacked

__all__ = ["BASES", "HEAD", "INVARIANTS", "Trial", "build", "make_batch", "stacked"]
