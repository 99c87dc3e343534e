"""What MLflow is told: an outbox on disk first, delivery from a thread of its own."""
