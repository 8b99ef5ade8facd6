"""Many images in one task instance: :class:`~kie_provider.operators.batch.Flux2BatchOperator` in pieces."""
