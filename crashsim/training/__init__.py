"""Training of networks that tolerate faults, and hardening."""
