"""Linear surrogates of many coordinates, their exact law, and what it says of classes."""
