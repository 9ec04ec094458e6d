"""A released model in a form that other programs read, with a card that says where it came from."""
