"""``crashsim campaign``: stores, studies, and what changed between them."""
