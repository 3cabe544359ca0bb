"""numpy's linear algebra on one thread, for work that is spread over threads itself.

OpenBLAS sets as many threads to each of a thousand small products as there are processors, and they wait for each other
busily: rounding a ResNet-50 took seven times the processor time. Sums also come out the same then, whatever the number
of processors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits

__all__ = ["one_blas_thread"]


def one_blas_thread() -> AbstractContextManager[object]:
    """Return a context in which a product of matrices takes one thread, in the whole process."""
    limits: AbstractContextManager[object] = threadpool_limits(1, user_api="blas")
    return limits
