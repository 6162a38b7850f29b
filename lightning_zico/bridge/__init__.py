"""Between Lightning and the engine: a module's training step as a loss, and data as lists of batches."""
