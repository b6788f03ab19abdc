"""What `evaluate.py compare` is made of: systems measured query by query, tests, pictures and a page."""
