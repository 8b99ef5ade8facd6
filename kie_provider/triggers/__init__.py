"""Kie.ai triggers."""
