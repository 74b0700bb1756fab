"""From pictures to heads."""
