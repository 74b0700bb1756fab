"""The ring trainer."""
