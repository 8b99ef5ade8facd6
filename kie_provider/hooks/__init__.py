"""Kie.ai hooks."""
