"""The paid call: what a task instance has submitted to Kie.ai, and what a later try makes of it."""
