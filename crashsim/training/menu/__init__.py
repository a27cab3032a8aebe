"""The menu of hardening: ways to make any network tolerate faults, compared at equal cost."""
