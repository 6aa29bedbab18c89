"""Typed records that flow between stages, joined by ids and never by row number. No torch."""
