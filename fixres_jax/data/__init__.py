"""Input side: sources of encoded images, transforms to uint8 crops, and the pipeline that batches them."""
