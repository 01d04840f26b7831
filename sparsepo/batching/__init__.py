"""From pairs of token ids to the batches that a model reads: layouts, cutting, sampling of rows."""
