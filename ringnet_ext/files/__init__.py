"""Bytes in and out, and nothing about heads."""
