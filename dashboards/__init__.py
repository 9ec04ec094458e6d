"""Pages about what runs and what was released, over the same services as everybody: `modelyard up` starts them."""
