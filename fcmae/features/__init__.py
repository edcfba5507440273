"""Analysis of an encoder's features: diversity and collapse, channel maps, embeddings, probes."""
