"""Kie.ai sensors."""
