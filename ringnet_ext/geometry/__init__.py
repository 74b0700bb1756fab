"""Cameras, rotations, alignment and surfaces."""
