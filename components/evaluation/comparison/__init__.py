"""What two or more evaluated models differ by: in scores, item by item, and in what they were made of."""
