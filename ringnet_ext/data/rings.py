"""Rings: R - 1 images of one person and one of somebody else."""

import numpy as np


class RingSampler:
    """Draws rings from a list of identities. Every identity leads one ring per epoch, in an order fresh every epoch.

    What a step sees depends on (seed, step) alone: a training run resumes at any step without stored state.
    An identity with fewer than R - 1 images shows some of them more than once in its ring. An image without identity
    is like a person with one image: its ring shows R - 1 crops of it.

    Args:
        identity: (N,) the identity of each image, negative where it is not known; at least two different ones.
        ring_size: R >= 3.
        rings_per_step: how many rings a step gets.
        seed: any integer >= 0.
    """

    def __init__(self, identity: np.ndarray, ring_size: int, rings_per_step: int, seed: int):
        if ring_size < 3:
            raise ValueError(f"ring_size: expected at least 3 (two of one person, one of another), got {ring_size}")
        if rings_per_step < 1:
            raise ValueError(f"rings_per_step: expected at least 1, got {rings_per_step}")
        lone = identity < 0
        if lone.any():
            identity = np.where(lone, identity.max() + np.cumsum(lone), identity)
        order = np.argsort(identity, kind="stable")
        _, starts = np.unique(identity[order], return_index=True)
        self._images = np.split(order, starts[1:])  # per identity
        if len(self._images) < 2:
            raise ValueError(f"identity: rings need at least two people, got {len(self._images)}")
        self.ring_size, self.rings_per_step, self.seed = ring_size, rings_per_step, seed

    def rings(self, step: int) -> np.ndarray:
        """Image indices (rings_per_step, R) of a step; the last column is the other person."""
        random = np.random.default_rng([self.seed, 1, step])
        people = len(self._images)
        result = np.empty((self.rings_per_step, self.ring_size), np.int64)
        for slot in range(self.rings_per_step):
            epoch, position = divmod(step * self.rings_per_step + slot, people)
            person = int(self._order(epoch)[position])
            own = self._images[person]
            result[slot, :-1] = random.choice(own, self.ring_size - 1, replace=len(own) < self.ring_size - 1)
            other = self._images[(person + random.integers(1, people)) % people]
            result[slot, -1] = random.choice(other)
        return result

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self._images))
        return self._permutation
