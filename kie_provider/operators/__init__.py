"""Kie.ai operators."""
