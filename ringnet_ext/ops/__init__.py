"""FLAME's operators."""

from .reference import batch_rodrigues, flame_landmarks, flame_lbs, vertices2landmarks

__all__ = ["batch_rodrigues", "flame_landmarks", "flame_lbs", "vertices2landmarks"]
