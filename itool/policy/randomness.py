"""One uniform number per (seed, sample, position), whatever else is sampled at the same time.

A stateful generator would tie a sample to the rows that share its batch; a hash of its coordinates does not. splitmix64 passes BigCrush
and takes a few numpy operations for a whole batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def stream_keys(seed: int, samples: range) -> Words:
    """The key of each sample of a request, uint64 [len(samples)]; `seed` may be any integer."""
    start = np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    index = np.arange(samples.start, samples.stop, dtype=np.uint64)
    return _mix(_mix(start) ^ _mix(index + _GOLDEN))


def uniforms(keys: Words, position: int) -> npt.NDArray[np.float32]:
    """One float32 in [0, 1) per key for the token at `position` of each sample."""
    words = _mix(keys + np.array([position + 1], dtype=np.uint64) * _GOLDEN)
    return ((words >> np.uint64(40)).astype(np.float32)) * np.float32(2.0**-24)


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64; arithmetic wraps modulo 2**64."""
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
