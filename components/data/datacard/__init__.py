"""One page that shows what a data version holds."""
